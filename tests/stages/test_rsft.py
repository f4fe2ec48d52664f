"""R-SFT: what it learns of a success where the policy has no skills."""

from types import SimpleNamespace

import numpy as np

from cso_jax.data.store import StoredEpisode
from cso_jax.envs.protocol import ChunkFrame, EnvSpec
from cso_jax.stages import rsft


def run_of(frame=None, chunk_length=3):
    return SimpleNamespace(
        spec=EnvSpec({"joints": 1}, {}, 1, frame),
        config=SimpleNamespace(execution_horizon=2),
        policy=SimpleNamespace(wants=SimpleNamespace(chunk_length=chunk_length)),
    )


def episode(first, decisions, seen=0.0):
    """Two actions per decision, counted on from `first`; `joints` `[decisions, history, 1]` ends in `seen`."""
    actions = np.arange(first, first + 2.0 * decisions, dtype=np.float32).reshape(decisions, 2, 1)
    joints = np.full((decisions, 2, 1), 9.0, np.float32)
    joints[:, -1] = seen
    return StoredEpisode("train:a:0", {"joints": joints}, {"actions": actions})


def test_a_chunk_is_what_was_executed_from_its_decision_on():
    chunks = rsft._executed_chunks(run_of(), [episode(0, 2), episode(10, 1)])
    # Past its end an episode repeats its last action, and never goes on in the next one.
    np.testing.assert_array_equal(chunks[..., 0], [[0, 1, 2], [2, 3, 3], [10, 11, 11]])


def test_chunks_are_relative_to_the_newest_observation_of_their_decision():
    frame = ChunkFrame("joints", scale=(1.0,), offset=(0.0,), spread=(0.5,))
    chunks = rsft._executed_chunks(run_of(frame), [episode(0, 2, seen=1.0)])
    np.testing.assert_array_equal(chunks[..., 0], [[-2, 0, 2], [2, 4, 4]])

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


def episode(first, decisions, seen=0.0, **attributes):
    """Two actions per decision, tenths from `first` on; `joints` `[decisions, history, 1]` ends in `seen`."""
    actions = np.arange(first, first + 2.0 * decisions, dtype=np.float32).reshape(decisions, 2, 1) / 10
    joints = np.full((decisions, 2, 1), 9.0, np.float32)
    joints[:, -1] = seen
    return StoredEpisode("train:a:0", {"joints": joints}, {"actions": actions}, attributes)


def test_a_chunk_is_what_was_executed_from_its_decision_on():
    chunks = rsft._executed_chunks(run_of(), [episode(0, 2), episode(6, 1), episode(0, 2, steps=3)])
    # Past its end an episode repeats its last action, and never goes on in the next one; the last one ended in a chunk.
    expected = np.array([[0, 1, 2], [2, 3, 3], [6, 7, 7], [0, 1, 2], [2, 2, 2]]) / 10
    np.testing.assert_allclose(chunks[..., 0], expected, rtol=1e-6)


def test_actions_are_learnt_as_they_were_executed_clipped():
    chunks = rsft._executed_chunks(run_of(), [episode(9, 1)])
    np.testing.assert_allclose(chunks[0, :, 0], [0.9, 1.0, 1.0], rtol=1e-6)
    chunks = rsft._executed_chunks(run_of(), [episode(11, 1)])
    np.testing.assert_array_equal(chunks[0, :, 0], [1.0, 1.0, 1.0])


def test_chunks_are_relative_to_the_newest_observation_of_their_decision():
    frame = ChunkFrame("joints", scale=(1.0,), offset=(0.0,), spread=(0.5,))
    chunks = rsft._executed_chunks(run_of(frame), [episode(0, 2, seen=1.0)])
    np.testing.assert_allclose(chunks[..., 0], [[-2, -1.8, -1.6], [-1.6, -1.4, -1.4]], rtol=1e-6)

"""What a server keeps of one robot, and how rows become one call."""

import numpy as np
import pytest
from support import served

from cso_jax.runtime.serving import Session, act_on_rows, episode_key, padded_size


def test_the_key_of_an_episode_is_a_function_of_seed_and_number():
    session = Session(served.manifest(), seed=3)
    first = session.episode_key
    session.reset()
    second = session.episode_key
    session.reset(0)
    assert first.dtype == np.uint32 and first.shape == (2,)
    assert (session.episode_key == first).all() and (second != first).any()
    assert (episode_key(3, 1) == second).all() and (episode_key(4, 1) != second).any()
    assert (episode_key(-1, -1) == episode_key(-1, -1)).all()


def test_decisions_count_from_zero_in_each_episode():
    session = Session(served.manifest(tasks=1), seed=0)
    session.observe(served.observation())
    assert [session.decide().decision_index for _ in range(3)] == [0, 1, 2]
    session.reset()
    with pytest.raises(ValueError, match="needs an observation"):
        session.decide()
    session.observe(served.observation())
    assert session.decide().decision_index == 0


def test_one_task_needs_no_name_and_several_do():
    session = Session(served.manifest(), seed=0)
    session.observe(served.observation())
    with pytest.raises(ValueError, match="task0"):
        session.decide()
    session.set_task("do thing 1")
    assert session.decide().task == 1


def test_a_history_begins_with_the_first_observation_repeated():
    session = Session(served.manifest(history=3, tasks=1), seed=0)
    session.observe(served.observation(1.0))
    assert session.decide().observation["joints"][:, 0].tolist() == [1, 1, 1]
    session.observe(served.observation(2.0))
    assert session.decide().observation["joints"][:, 0].tolist() == [1, 1, 2]
    own = {name: np.stack([value] * 3) for name, value in served.observation(5.0).items()}
    session.observe(own)
    assert session.decide().observation["joints"][:, 0].tolist() == [5, 5, 5]


def test_rows_are_padded_to_a_compiled_size():
    assert [padded_size(n, (8, 1, 4)) for n in (1, 2, 4, 5, 9)] == [1, 4, 4, 8, 8]
    policy = served.FakePolicy()
    sessions = [Session(policy.manifest, seed=n) for n in range(3)]
    for number, session in enumerate(sessions):
        session.set_task("task1")
        session.observe(served.observation(float(number)))
    chunks = act_on_rows(policy, [session.decide() for session in sessions])
    assert chunks.shape == (3, 16, 7) and chunks[:, 0, 3].tolist() == [0, 1, 2]
    (call,) = policy.calls
    assert call["task"].tolist() == [1, 1, 1, 1] and call["task"].dtype == np.int32
    assert call["keys"].shape == (4, 2) and call["keys"].dtype == np.uint32
    assert call["observation"]["camera"].shape == (4, 8, 10, 3)
    with pytest.raises(ValueError, match="1 to 4 rows"):
        act_on_rows(policy, [sessions[0].decide()] * 5)

"""Which action belongs to which step: worked by hand."""

import numpy as np

from cso_jax.runtime.chunks import ChunkSchedule, LatencyEstimate


def _chunk(first: float, length: int = 4, size: int = 1) -> np.ndarray:
    return first + np.arange(length, dtype=np.float64)[:, None] * np.ones(size)


def test_actions_that_are_past_are_skipped():
    schedule = ChunkSchedule(horizon=2)
    assert schedule.action(0) is None
    assert schedule.receive(_chunk(10.0), observed=5, now=7)
    assert [None if a is None else a[0] for a in map(schedule.action, range(6, 11))] == [11, 12, 13, None, None]
    assert schedule.seams == 0


def test_a_chunk_that_is_all_past_changes_nothing():
    schedule = ChunkSchedule(horizon=2)
    schedule.receive(_chunk(0.0), 4, 4)
    assert not schedule.receive(_chunk(9.0), 0, 4)
    assert not schedule.receive(_chunk(9.0), 6, 4)  # of an observation that is still to come
    assert schedule.action(4)[0] == 0


def test_the_next_is_asked_for_when_the_horizon_is_as_near_as_the_latency():
    schedule = ChunkSchedule(horizon=8)
    assert schedule.wants(0, 3)
    schedule.receive(_chunk(0.0, 16), 0, 0)
    assert [schedule.wants(step, 3) for step in (4, 5, 6)] == [False, True, True]
    assert schedule.wants(0, 8)
    schedule.clear()
    assert schedule.wants(0, 0) and schedule.action(0) is None


def test_blending_is_linear_and_leaves_the_gripper_alone():
    schedule = ChunkSchedule(horizon=2, blend=3, blended=np.asarray([True, False]))
    schedule.receive(np.zeros((8, 2)), 0, 0)
    schedule.receive(np.full((8, 2), 4.0), 2, 3)
    found = np.stack([schedule.action(step) for step in range(3, 8)])
    assert found[:, 0].tolist() == [1, 2, 3, 4, 4]
    assert found[:, 1].tolist() == [4] * 5
    assert schedule.seams == 1 and schedule.seam_largest == 4


def test_blending_ends_with_the_old_chunk():
    schedule = ChunkSchedule(horizon=2, blend=3)
    schedule.receive(np.zeros((2, 1)), 0, 0)
    schedule.receive(np.full((8, 1), 4.0), 1, 1)
    assert [schedule.action(step)[0] for step in (1, 2, 3)] == [1, 4, 4]


def test_the_latency_is_the_longest_of_the_last_few():
    latency = LatencyEstimate(0.02, kept=3)
    assert latency.steps == 0
    for seconds, steps in ((0.1, 5), (0.05, 5), (0.05, 5), (0.05, 3), (-1.0, 3), (0.101, 6)):
        latency.add(seconds)
        assert latency.steps == steps

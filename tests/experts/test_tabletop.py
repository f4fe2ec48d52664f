"""The tabletop's scripted demonstrations: each task is solved, replays, and repeats; inverse kinematics arrive."""

import numpy as np
import pytest
from support.tabletop import BOTH_ARMS, STATE, needs_arm

from cso_jax.envs.protocol import EvalInit, TrainInit
from cso_jax.envs.tabletop import benchmark
from cso_jax.envs.tabletop.robots import ROBOTS, VIPERX
from cso_jax.envs.tabletop.simulator import model_of
from cso_jax.envs.tabletop.tasks import TASKS
from cso_jax.experts.tabletop.expert import collect_demo
from cso_jax.experts.tabletop.kinematics import Kinematics, pointing_down, rotation_of, rotation_vector
from cso_jax.experts.tabletop.motions import minimum_jerk

pytestmark = needs_arm


@pytest.mark.parametrize("name", BOTH_ARMS)
@pytest.mark.parametrize("task", TASKS)
def test_the_expert_solves_each_task_with_noise_and_the_recording_replays(task, name):
    settings = {**STATE, "robot": name}
    demo = collect_demo(settings, TrainInit(task, 7), noise=0.005, extra_steps=3, seed=0)
    assert demo is not None and len(demo.actions) == demo.success_step + 4
    assert demo.extras["stages"].shape == (len(demo.actions), len(TASKS[task].stages))
    slot = benchmark.make_environments(settings, 1)[0]
    result = slot.reset(demo.init)
    for step in range(demo.success_step + 1):
        for key, value in result.observation.items():
            np.testing.assert_array_equal(value, demo.observations[key][step])
        assert not result.success
        result = slot.step_chunk(demo.actions[step][None])
        assert result.stages == tuple(demo.extras["stages"][step])
    assert result.success


def test_a_demonstration_is_what_its_docstring_says():
    init = TrainInit("press-button", 2)
    demo = collect_demo(STATE, init, noise=0.02, extra_steps=5, seed=1)
    assert demo is not None and demo.init == init
    steps = len(demo.actions)
    assert demo.observations["proprio"].shape == (steps, 7) and demo.observations["state"].shape == (steps, 33)
    assert demo.actions.shape == demo.expert_actions.shape == (steps, 7)
    assert demo.actions.dtype == demo.expert_actions.dtype == np.float32
    assert np.abs(demo.actions).max() <= 1 and np.abs(demo.expert_actions).max() <= 1
    assert 0.01 < (demo.actions - demo.expert_actions)[:, :6].std() < 0.03


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_noise():
    init = TrainInit("press-button", 0)
    first, again, other = (collect_demo(STATE, init, noise=0.01, extra_steps=0, seed=seed) for seed in (0, 0, 1))
    assert first is not None and again is not None and other is not None
    np.testing.assert_array_equal(first.actions, again.actions)
    assert not np.array_equal(first.actions[:10], other.actions[:10])


def test_commands_stay_within_the_speed_of_the_joints():
    demo = collect_demo(STATE, TrainInit("cube-on-cube", 1), noise=0.0, extra_steps=0, seed=0)
    assert demo is not None
    np.testing.assert_array_equal(demo.actions, demo.expert_actions)
    joints = np.array([VIPERX.joints_of(action) for action in demo.actions])
    speed = np.abs(np.diff(joints, axis=0)).max(axis=0) * STATE["control_hz"]
    assert np.all(speed < VIPERX.speed)


def test_a_failed_episode_is_none():
    assert collect_demo({**STATE, "horizon": 5}, TrainInit("cube-on-cube", 0), noise=0, extra_steps=0, seed=0) is None


def test_what_cannot_be_is_refused():
    with pytest.raises(TypeError, match="train initial states only"):
        collect_demo(STATE, EvalInit("press-button", 0), noise=0.0, extra_steps=0, seed=0)
    with pytest.raises(ValueError, match="must not be negative"):
        collect_demo(STATE, TrainInit("press-button", 0), noise=-0.1, extra_steps=0, seed=0)
    with pytest.raises(ValueError, match="no task"):
        collect_demo(STATE, TrainInit("press-buttons", 0), noise=0.0, extra_steps=0, seed=0)


@pytest.mark.parametrize("spot", [(0.26, 0.0, 0.02), (0.45, 0.15, 0.02), (0.35, -0.2, 0.15), (0.3, 0.2, 0.2)], ids=str)
def test_the_whole_workspace_is_within_reach(spot):
    kinematics = Kinematics(model_of("press-button", "viperx"), VIPERX)
    for turn in (-0.8, 0.0, 0.8):
        wanted = pointing_down(float(np.arctan2(spot[1], spot[0])) + turn)
        place, rotation = kinematics.pose(kinematics.solve(np.array(VIPERX.home), np.array(spot), wanted))
        np.testing.assert_allclose(place, spot, atol=5e-4)
        np.testing.assert_allclose(rotation, wanted, atol=5e-3)


def test_rotations_and_their_vectors_are_inverse():
    vector = np.array([0.3, -1.2, 0.7])
    np.testing.assert_allclose(rotation_vector(rotation_of(vector)), vector, atol=1e-9)
    np.testing.assert_allclose(rotation_of(np.zeros(3)), np.eye(3))


def test_a_minimum_jerk_motion_starts_and_ends_at_rest():
    assert [minimum_jerk(share) for share in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]
    assert minimum_jerk(0.01) < 1e-4 and 1 - minimum_jerk(0.99) < 1e-4


@pytest.mark.parametrize("name", BOTH_ARMS)
def test_beyond_what_a_wrist_can_do_the_hand_leans_and_is_in_its_place(name):
    robot = ROBOTS[name]
    kinematics = Kinematics(model_of("press-button", name), robot)
    joints = kinematics.solve(np.array(robot.home), np.array([0.45, 0.1, 0.15]), pointing_down(0.2))
    assert np.all(joints >= robot.lower) and np.all(joints <= robot.upper)
    np.testing.assert_allclose(kinematics.pose(joints)[0], [0.45, 0.1, 0.15], atol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH_ARMS)
@pytest.mark.parametrize("task", TASKS)
def test_nine_of_ten_demonstrations_succeed(task, name):
    """With the noise of the default config."""
    noise, settings = benchmark.default_config()["demos"]["noise"], {**STATE, "robot": name}
    demos = [collect_demo(settings, TrainInit(task, 1000 + i), noise=noise, extra_steps=0, seed=0) for i in range(20)]
    assert sum(demo is not None for demo in demos) >= 18

"""Scripted demonstrations: provenance, repeatability, the clean and the executed action, and the settled tail."""

import numpy as np
import pytest

from cso_jax.envs import gl
from cso_jax.envs.metaworld import benchmark as metaworld
from cso_jax.envs.protocol import EvalInit, TrainInit
from cso_jax.experts.metaworld import collect_demo

STATE = {"name": "metaworld", "obs": "state"}


def test_a_demonstration_is_what_its_docstring_says():
    init = TrainInit("reach-v3", 2)
    demo = collect_demo(STATE, init, noise=0.1, extra_steps=5, seed=1)
    assert demo is not None and demo.init == init
    steps = len(demo.actions)
    assert steps == demo.success_step + 1 + 5
    assert demo.observations["state"].shape == (steps, 39)
    assert demo.actions.shape == demo.expert_actions.shape == (steps, 4)
    assert demo.actions.dtype == demo.expert_actions.dtype == demo.observations["state"].dtype == np.float32
    assert np.abs(demo.actions).max() <= 1 and np.abs(demo.expert_actions).max() <= 1


def test_executing_the_recorded_actions_gives_the_recorded_observations_and_success():
    init = TrainInit("drawer-close-v3", 0)
    demo = collect_demo(STATE, init, noise=0.2, extra_steps=3, seed=0)
    assert demo is not None
    slot = metaworld.make_environments(STATE, 1)[0]
    result = slot.reset(init)
    for step in range(demo.success_step + 1):
        np.testing.assert_array_equal(result.observation["state"], demo.observations["state"][step])
        assert not result.success
        result = slot.step_chunk(demo.actions[step][None])
    assert result.success


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_noise():
    init = TrainInit("reach-v3", 0)
    first, again, other = (collect_demo(STATE, init, noise=0.1, extra_steps=0, seed=seed) for seed in (0, 0, 1))
    assert first is not None and again is not None and other is not None
    np.testing.assert_array_equal(first.actions, again.actions)
    assert not np.array_equal(first.actions[:10], other.actions[:10])


def test_without_noise_the_expert_is_executed():
    demo = collect_demo(STATE, TrainInit("reach-v3", 0), noise=0.0, extra_steps=0, seed=0)
    assert demo is not None
    np.testing.assert_array_equal(demo.actions, demo.expert_actions)


def test_a_failed_episode_is_none():
    assert collect_demo({**STATE, "horizon": 5}, TrainInit("push-v3", 0), noise=0.1, extra_steps=0, seed=0) is None


def test_the_tail_ends_at_the_horizon():
    free = collect_demo(STATE, TrainInit("reach-v3", 0), noise=0.0, extra_steps=0, seed=0)
    assert free is not None
    horizon = free.success_step + 3
    bound = collect_demo({**STATE, "horizon": horizon}, TrainInit("reach-v3", 0), noise=0.0, extra_steps=50, seed=0)
    assert bound is not None and len(bound.actions) == horizon


def test_evaluation_states_are_refused():
    with pytest.raises(TypeError, match="train initial states only"):
        collect_demo(STATE, EvalInit("reach-v3", 0), noise=0.1, extra_steps=0, seed=0)


def test_negative_noise_is_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        collect_demo(STATE, TrainInit("reach-v3", 0), noise=-0.1, extra_steps=0, seed=0)


def test_unknown_tasks_are_refused():
    with pytest.raises(ValueError, match="did you mean"):
        collect_demo(STATE, TrainInit("reach-v2", 0), noise=0.1, extra_steps=0, seed=0)


def test_pixels_are_drawn_at_every_step(monkeypatch):
    working = [name for name in gl.BACKENDS if gl.backend_works(name)]
    if not working:
        pytest.skip("no OpenGL library here draws without a display")
    if gl.gl_name() == "none":
        monkeypatch.setenv("MUJOCO_GL", working[0])
    settings = {"name": "metaworld", "obs": "pixels", "image_size": 32, "video_size": 32}
    demo = collect_demo(settings, TrainInit("reach-v3", 0), noise=0.0, extra_steps=2, seed=0)
    assert demo is not None
    steps = len(demo.actions)
    assert demo.observations["corner2"].shape == (steps, 32, 32, 3)
    assert demo.observations["hand"].shape == (steps, 4)
    assert not np.array_equal(demo.observations["corner2"][0], demo.observations["corner2"][-1])

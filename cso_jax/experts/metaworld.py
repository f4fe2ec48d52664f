"""Demonstrations from MetaWorld's scripted policies, which see the whole state whatever the observations recorded."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from cso_jax.envs.gl import load_mujoco
from cso_jax.envs.metaworld.environment import Observer, process_pool, seed_of
from cso_jax.envs.metaworld.settings import Settings
from cso_jax.envs.metaworld.simulator import Simulator
from cso_jax.envs.protocol import Observation, TrainInit, require_train
from cso_jax.experts.protocol import Demonstration


def collect_demo(
    settings: Mapping[str, Any], init: TrainInit, *, noise: float, extra_steps: int, seed: int
) -> Demonstration | None:
    """One scripted episode from `init`, None if the task is not solved within the horizon.

    The executed action is clip(expert + Normal(0, `noise`), -1, 1), its noise a function of (`seed`, `init`) alone.
    The episode goes on for `extra_steps` after the first success (or to the horizon), so that the demonstration shows
    how to stay there. With obs="pixels" the cameras are drawn at every step.

    Raises TypeError for an evaluation state, ValueError for an unknown task or a negative `noise` or `extra_steps`.
    """
    init = require_train(init)
    if noise < 0 or extra_steps < 0:
        raise ValueError(f"noise and extra_steps must not be negative, got {noise} and {extra_steps}")
    chosen = Settings.of(settings)
    observer = Observer(chosen, slots=1)
    pool = process_pool(chosen.instance_cap)
    simulator = pool.acquire(init.task)
    try:
        return _run(simulator, observer, chosen.horizon, init, noise, extra_steps, seed)
    finally:
        pool.release(simulator)


def _run(
    simulator: Simulator,
    observer: Observer,
    horizon: int,
    init: TrainInit,
    noise: float,
    extra_steps: int,
    seed: int,
) -> Demonstration | None:
    policy = _policy(init.task)
    generator = np.random.default_rng([seed, init.index, *init.task.encode()])
    observations: list[Observation] = []
    actions: list[np.ndarray] = []
    expert_actions: list[np.ndarray] = []
    success_step: int | None = None
    state = simulator.reset(seed_of(init))
    for step in range(horizon):
        observations.append(observer.observe(simulator, state))
        wanted = _ask(policy, state)
        expert_actions.append(np.clip(wanted, -1.0, 1.0).astype(np.float32))
        actions.append(np.clip(wanted + generator.normal(0.0, noise, wanted.shape), -1.0, 1.0).astype(np.float32))
        state, success = simulator.step(actions[-1])
        if success and success_step is None:
            success_step = step
        if success_step is not None and step >= success_step + extra_steps:
            break
    if success_step is None:
        return None
    stacked = {key: np.stack([seen[key] for seen in observations]) for key in observations[0]}
    return Demonstration(init, stacked, np.stack(actions), np.stack(expert_actions), success_step)


def _policy(task: str) -> Any:
    load_mujoco()
    from metaworld.policies import ENV_POLICY_MAP

    policies: dict[str, Any] = ENV_POLICY_MAP
    return policies[task]()  # some policies remember things: a new one for every episode


def _ask(policy: Any, state: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they warn whenever they ask for more than 1, which is then clipped
        return np.asarray(policy.get_action(state), np.float64)

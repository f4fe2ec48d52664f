"""Demonstrations of the tabletop's tasks, from plans that see the whole state whatever the observations recorded."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from cso_jax.envs.protocol import Observation, TrainInit, require_train
from cso_jax.envs.tabletop.environment import Observer, horizon_of
from cso_jax.envs.tabletop.robots import ROBOTS
from cso_jax.envs.tabletop.settings import Settings
from cso_jax.envs.tabletop.simulator import Simulator, model_of
from cso_jax.experts.protocol import Demonstration
from cso_jax.experts.tabletop.kinematics import Kinematics
from cso_jax.experts.tabletop.motions import Arm, Style
from cso_jax.experts.tabletop.plans import plan


def collect_demo(
    settings: Mapping[str, Any], init: TrainInit, *, noise: float, extra_steps: int, seed: int
) -> Demonstration | None:
    """One scripted episode from `init`, None if the task is not solved within its horizon.

    The executed action is clip(expert + Normal(0, `noise`), -1, 1); its noise and the expert's small variations (speed,
    height of travel) are a function of (`seed`, `init`) alone. Commands are absolute: a noise of 0.01 is up to 5 mm at
    the fingertips. The episode goes on for `extra_steps` after the success (or to the horizon), so that the
    demonstration shows how to stay there. `extras["stages"]` bool `[N, stages]` says which stages were done after each
    action. With obs="pixels" the cameras are drawn at every step.

    Raises TypeError for an evaluation state, ValueError for an unknown task or a negative `noise` or `extra_steps`.
    """
    init = require_train(init)
    if noise < 0 or extra_steps < 0:
        raise ValueError(f"noise and extra_steps must not be negative, got {noise} and {extra_steps}")
    chosen = Settings.of(settings)
    simulator = _simulator(init.task, chosen.robot, chosen.control_hz)
    simulator.reset(init)
    generator = np.random.default_rng([seed, init.index, *init.task.encode()])
    arm = Arm(simulator, _kinematics(init.task, chosen.robot), Style.draw(generator), chosen.control_hz)
    commands, observer = plan(arm, init.task), Observer(chosen)
    observations: list[Observation] = []
    actions: list[np.ndarray] = []
    expert_actions: list[np.ndarray] = []
    stages: list[tuple[bool, ...]] = []
    success_step: int | None = None
    for step in range(horizon_of(chosen, init.task)):
        observations.append(observer.observe(simulator))
        wanted = np.clip(next(commands), -1.0, 1.0)
        expert_actions.append(wanted.astype(np.float32))
        actions.append(np.clip(wanted + generator.normal(0.0, noise, wanted.shape), -1.0, 1.0).astype(np.float32))
        success = simulator.step(actions[-1])
        stages.append(simulator.stages)
        if success and success_step is None:
            success_step = step
        if success_step is not None and step >= success_step + extra_steps:
            break
    if success_step is None:
        return None
    stacked = {key: np.stack([seen[key] for seen in observations]) for key in observations[0]}
    return Demonstration(
        init, stacked, np.stack(actions), np.stack(expert_actions), success_step, extras={"stages": np.array(stages)}
    )


@functools.cache
def _simulator(task: str, robot: str, control_hz: int) -> Simulator:
    return Simulator(task, robot, control_hz)


@functools.cache
def _kinematics(task: str, robot: str) -> Kinematics:
    return Kinematics(model_of(task, robot), ROBOTS[robot])

"""Demonstrations from scripted experts of LIBERO, which see the whole state whatever the observations recorded."""

import dataclasses
from collections.abc import Callable, Generator, Mapping
from typing import Any

import numpy as np

from cso_jax.envs.libero.environment import Observer, process_scenes, start_of_training
from cso_jax.envs.libero.protocols import PROTOCOLS, horizon
from cso_jax.envs.libero.settings import Settings
from cso_jax.envs.libero.simulator import Scene, Snapshot
from cso_jax.envs.protocol import Observation, TrainInit, require_train
from cso_jax.experts.libero.arm import Arm, Style
from cso_jax.experts.libero.planner import expert
from cso_jax.experts.protocol import Demonstration


def collect_demo(
    settings: Mapping[str, Any], init: TrainInit, *, noise: float, extra_steps: int, seed: int
) -> Demonstration | None:
    """One scripted episode from `init`, None if the task is not solved within the horizon.

    The executed action is clip(expert + Normal(0, `noise`), -1, 1); its noise and the expert's small variations (speed,
    height, which of equally good grasps) are a function of (`seed`, `init`) alone. Success often comes while the object
    is still held: the episode goes on for `extra_steps` (or to the horizon), so that the demonstration shows the
    release. `extras["states"]` float64 `[N, D]` are LIBERO's own states before each action; `attributes` hold the first
    of them as "init_state", and as "fixture_poses" where the fixtures stand, which those states leave out.

    Raises TypeError for an evaluation state, ValueError for an unknown task or a negative `noise` or `extra_steps`.
    """
    init = require_train(init)
    if noise < 0 or extra_steps < 0:
        raise ValueError(f"noise and extra_steps must not be negative, got {noise} and {extra_steps}")
    chosen = Settings.of(settings)
    observer = Observer(chosen)
    steps = horizon(PROTOCOLS[chosen.libero.protocol], init.task, chosen.horizon)
    scenes = process_scenes(chosen.libero, chosen.obs != "state")
    visit = _Visit()
    scene = scenes.enter(visit, init.task)
    try:
        start_of_training(chosen, scene, init)
        words = [seed, init.index, *init.task.encode()]
        episode = run(scene, words, noise=noise, horizon=steps, extra_steps=extra_steps, observe=observer.observe)
        fixtures = _fixture_poses(scene)
    finally:
        scenes.leave(visit)
    if episode.success_step is None:
        return None
    return Demonstration(
        init=init,
        observations={key: np.stack([seen[key] for seen in episode.observations]) for key in episode.observations[0]},
        actions=np.stack(episode.actions),
        expert_actions=np.stack(episode.expert_actions),
        success_step=episode.success_step,
        extras={"states": np.stack(episode.states)},
        attributes={"init_state": episode.states[0], "fixture_poses": fixtures},
    )


@dataclasses.dataclass
class Episode:
    """What happened in one scripted episode, step by step; `success_step` is None if the goal never held."""

    observations: list[Observation] = dataclasses.field(default_factory=list)
    states: list[np.ndarray] = dataclasses.field(default_factory=list)
    actions: list[np.ndarray] = dataclasses.field(default_factory=list)
    expert_actions: list[np.ndarray] = dataclasses.field(default_factory=list)
    success_step: int | None = None


def run(
    scene: Scene,
    words: list[int],
    *,
    noise: float,
    horizon: int,
    extra_steps: int,
    observe: Callable[[Scene], Observation] | None = None,
) -> Episode:
    """Let the expert act in `scene` from where it stands; all randomness is a function of `words`.

    Nothing is observed without `observe`.
    """
    generator = np.random.default_rng(words)
    commands = expert(Arm(scene, Style.draw(generator)))
    episode = Episode()
    for step in range(horizon):
        if observe is not None:
            episode.observations.append(observe(scene))
        episode.states.append(scene.flat_state())
        wanted = _next(commands)
        episode.expert_actions.append(np.clip(wanted, -1.0, 1.0).astype(np.float32))
        shaken = wanted + generator.normal(0.0, noise, wanted.shape)
        episode.actions.append(np.clip(shaken, -1.0, 1.0).astype(np.float32))
        if scene.step(episode.actions[-1]) and episode.success_step is None:
            episode.success_step = step
        if episode.success_step is not None and step >= episode.success_step + extra_steps:
            break
    return episode


class _Visit:
    """A demonstration's claim on a shared scene."""

    parked: Snapshot | None = None


def _next(commands: Generator[np.ndarray, None, None]) -> np.ndarray:
    return np.clip(next(commands), -1.0, 1.0)


def _fixture_poses(scene: Scene) -> dict[str, list[float]]:
    """Position and quaternion `[7]` of every fixture with a body."""
    placed = [name for name in scene.fixtures if name in scene.env.obj_body_id]
    bodies = {name: scene.env.obj_body_id[name] for name in placed}
    return {
        name: [*scene.model.body_pos[body].tolist(), *scene.model.body_quat[body].tolist()]
        for name, body in bodies.items()
    }

"""Demonstrations of the fake environment: straight to the goal."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cso_jax.envs import fake
from cso_jax.envs.protocol import Observation, TrainInit
from cso_jax.experts.protocol import Demonstration


def expert_action(state: np.ndarray) -> np.ndarray:
    """Straight to the goal at full speed: action `[2]` float32 for `state` `[4]`."""
    offset = np.asarray(state[2:4] - state[0:2], np.float32)
    return np.clip(offset / np.float32(fake.SPEED), -1, 1).astype(np.float32)


def collect_demo(
    settings: Mapping[str, Any],
    init: TrainInit,
    *,
    noise: float,
    extra_steps: int,
    seed: int,
    store_images: bool | None = None,
    label: str = "executed",
) -> Demonstration | None:
    """Let the scripted expert solve `init` under action noise of standard deviation `noise`, then `extra_steps` more.

    The noise is a function of `seed` and `init`. With `label="expert"` the clean actions take the place of the
    executed ones in `actions`. `store_images` overrides the settings' choice of images or none. Returns None where the
    expert does not succeed before the horizon.
    Raises ValueError for an unknown label.
    """
    if label not in ("executed", "expert"):
        raise ValueError(f"label must be 'executed' or 'expert', got {label!r}")
    if store_images is not None:
        settings = {**settings, "obs": "pixels" if store_images else "state"}
    fault = settings.get("faults", {}).get(init.name)
    if fault is not None and fake.strikes(fault):
        fake.fail(fault["kind"])
    horizon = int(settings.get("horizon", fake.DEFAULT_HORIZON))
    position, goal = fake.draw_points(init)
    rng = np.random.default_rng([seed, list(fake.DIRECTIONS).index(init.task), init.index])
    observations: list[Observation] = []
    executed: list[np.ndarray] = []
    clean: list[np.ndarray] = []
    success_step = -1
    while len(executed) < horizon if success_step < 0 else len(executed) <= success_step + extra_steps:
        observation = fake.observe(settings, position, goal)
        clean.append(expert_action(observation["state"]))
        noisy = clean[-1] + noise * rng.standard_normal(fake.ACTION_DIM)
        executed.append(np.clip(noisy, -1, 1).astype(np.float32))
        observations.append(observation)
        position = position + np.float32(fake.SPEED) * executed[-1]
        if success_step < 0 and np.linalg.norm(goal - position) < fake.TOLERANCE:
            success_step = len(executed) - 1
    if success_step < 0:
        return None
    stacked = {name: np.stack([observation[name] for observation in observations]) for name in observations[0]}
    expert_actions = np.stack(clean)
    actions = expert_actions.copy() if label == "expert" else np.stack(executed)
    return Demonstration(init, stacked, actions, expert_actions, success_step)

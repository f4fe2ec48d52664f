"""Scripted demonstrations of `toy_environment`: full speed to the mark."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from support.toy_environment import STEP, Cart

from cso_jax.envs.protocol import TrainInit
from cso_jax.experts.protocol import Demonstration


def collect_demo(
    settings: Mapping[str, Any], init: TrainInit, *, noise: float, extra_steps: int, seed: int
) -> Demonstration | None:
    cart = Cart(settings)
    cart.begin(init)
    generator = np.random.default_rng([seed, init.index, *init.task.encode()])
    states, actions, wanted = [], [], []
    success_step: int | None = None
    for step in range(settings["horizon"]):
        states.append(cart.observe()["state"])
        wanted.append(np.clip([(cart.mark - cart.position) / STEP], -1, 1).astype(np.float32))
        actions.append(np.clip(wanted[-1] + generator.normal(0, noise, 1), -1, 1).astype(np.float32))
        if cart.step(actions[-1]) and success_step is None:
            success_step = step
        if success_step is not None and step >= success_step + extra_steps:
            break
    if success_step is None:
        return None
    return Demonstration(init, {"state": np.stack(states)}, np.stack(actions), np.stack(wanted), success_step)

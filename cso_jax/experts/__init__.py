"""Privileged scripted experts that make demonstrations, one module per benchmark."""

import importlib
from collections.abc import Mapping
from typing import Any

from cso_jax.envs.protocol import TrainInit
from cso_jax.experts.protocol import Demonstration

_EXPERTS = {
    "metaworld": "cso_jax.experts.metaworld",
    "libero": "cso_jax.experts.libero.expert",
    "fake": "cso_jax.envs.fake",
}


def collect_demo(
    settings: Mapping[str, Any], init: TrainInit, *, noise: float, extra_steps: int, seed: int
) -> Demonstration | None:
    """One scripted episode from `init` with Gaussian action noise of standard deviation `noise`; None if it failed.

    It goes on for `extra_steps` after the first success, so that the demonstration shows how to stay there.
    """
    module = importlib.import_module(_EXPERTS[settings["name"]])
    return module.collect_demo(settings, init, noise=noise, extra_steps=extra_steps, seed=seed)

"""Privileged scripted experts that make demonstrations, one module per benchmark.

Such a module has a top-level function `collect_demo`, which does what the protocol `CollectDemo` says.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from cso_jax.envs.protocol import TrainInit
from cso_jax.experts.protocol import CollectDemo, Demonstration

EXPERTS = {
    "metaworld": "cso_jax.experts.metaworld",
    "libero": "cso_jax.experts.libero.expert",
    "tabletop": "cso_jax.experts.tabletop.expert",
    "fake": "cso_jax.experts.fake",
}
"""The module of every benchmark's experts, by its name in `config.env.name`."""


def collector(settings: Mapping[str, Any]) -> CollectDemo:
    """The `collect_demo` of the benchmark's experts: what a worker process is given finds it without a registry.

    Raises LookupError for a benchmark without experts.
    """
    name = settings["name"]
    if name not in EXPERTS:
        raise LookupError(f"{name} has no scripted experts; there are some for {', '.join(EXPERTS)}")
    function: CollectDemo = importlib.import_module(EXPERTS[name]).collect_demo
    return function


def collect_demo(
    settings: Mapping[str, Any], init: TrainInit, *, noise: float, extra_steps: int, seed: int
) -> Demonstration | None:
    """One scripted episode from `init`, as `CollectDemo` says; None if it failed."""
    return collector(settings)(settings, init, noise=noise, extra_steps=extra_steps, seed=seed)

"""The demonstration that every scripted expert hands to the data stage, whatever simulator it was recorded in."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from cso_jax.envs.protocol import TrainInit


@dataclasses.dataclass
class Demonstration:
    """One successful scripted episode of N simulator steps, starting from `init`.

    `observations[key][n]` `[N, ...]` is what the policy would have seen just before `actions[n]` was executed.
    `actions` `[N, A]` float32 are the executed actions, exploration noise included; `expert_actions` `[N, A]` float32
    are the clean ones the expert asked for in the same states. `success_step` is the index n of the first step after
    which the task counted as solved. `extras[name]` `[N, ...]` are further columns, such as full simulator states, and
    `attributes` facts about the whole episode; both go to the episode file only.
    """

    init: TrainInit
    observations: dict[str, np.ndarray]
    actions: np.ndarray
    expert_actions: np.ndarray
    success_step: int
    extras: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)


class CollectDemo(Protocol):
    """What a scripted expert offers: a top-level function, which travels to worker processes by its name."""

    def __call__(
        self, settings: Mapping[str, Any], init: TrainInit, *, noise: float, extra_steps: int, seed: int
    ) -> Demonstration | None:
        """One scripted episode from `init` with Gaussian action noise of std `noise`; None if it failed.

        It goes on for `extra_steps` after the first success, so that the demonstration shows how to stay there.
        """

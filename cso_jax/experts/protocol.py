"""The demonstration that every scripted expert hands to the data stage, whatever simulator it was recorded in."""

import dataclasses
from typing import Any

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

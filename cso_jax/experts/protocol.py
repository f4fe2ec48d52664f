"""The demonstration that every scripted expert hands to the data stage, whatever simulator it was recorded in."""

import dataclasses

import numpy as np

from cso_jax.envs.protocol import TrainInit


@dataclasses.dataclass
class Demonstration:
    """One successful scripted episode of N simulator steps, starting from `init`.

    `observations[key][n]` `[N, ...]` is what the policy would have seen just before `actions[n]` was executed.
    `actions` `[N, A]` float32 are the executed actions, exploration noise included; `expert_actions` `[N, A]` float32
    are the clean ones the expert asked for in the same states. `success_step` is the index n of the first step after
    which the task counted as solved.
    """

    init: TrainInit
    observations: dict[str, np.ndarray]
    actions: np.ndarray
    expert_actions: np.ndarray
    success_step: int

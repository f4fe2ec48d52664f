"""REINFORCE: `-A log pi(Z)` without ratio or clipping, on the same advantages as the clipped surrogate."""

from typing import Any

import jax

from cso_jax import objectives
from cso_jax.stages.spo.objectives.clipped import (
    item_count,
    item_id,
    needs_reference,
    prepare,
    problems,
    uses_every_group,
)

__all__ = ["item_count", "item_id", "loss", "needs_reference", "prepare", "problems", "uses_every_group"]


def loss(settings: Any):
    """See `Objective`."""

    def reinforce_loss(log_prob: jax.Array, batch: dict[str, Any]):
        return objectives.reinforce_loss(
            log_prob,
            batch["log_prob"],
            batch["advantage"],
            batch[item_id],
            batch["mask"],
            average=settings.average,
            num_episodes=batch["mask"].shape[0],
            episodes=batch[item_count][0],
        )

    return reinforce_loss

"""The clipped surrogate (Eq. 9) on every episode with its advantage relative to its group (Eq. 8).

`config.spo.unit` is over what one importance ratio is taken: "skill" is SPO, "token" GRPO, "trajectory" GSPO.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from cso_jax import objectives
from cso_jax.policies.interface import Variables
from cso_jax.rollout.episodes import EpisodeRecord
from cso_jax.run import Run
from cso_jax.stages.spo.material import Columns, Material

item_id, item_count = "episode_id", "episodes"


def problems(settings: Any, decisions: int) -> list[str]:
    """See `Objective`."""
    if settings.normalise_std and settings.baseline == "none":
        return ["config.spo.normalise_std needs a config.spo.baseline: without one there is no group to normalise by"]
    return []


def uses_every_group(settings: Any) -> bool:
    """See `Objective`."""
    return settings.baseline == "none"


def needs_reference(settings: Any) -> bool:
    """See `Objective`."""
    return False


def prepare(
    run: Run,
    groups: Sequence[Sequence[EpisodeRecord]],
    columns: Sequence[Sequence[Columns]],
    reference: Variables | None,
) -> Material:
    """Every episode with `advantage` `[D]`, the same number for each of its decisions."""
    settings = run.config.spo
    rewards = np.array([[record.success for record in group] for group in groups], np.float32)
    advantages = np.asarray(
        objectives.group_advantage(rewards, baseline=settings.baseline, normalise_std=settings.normalise_std)
    )
    items = [item for group in columns for item in group]
    for item, advantage in zip(items, advantages.ravel(), strict=True):
        item["advantage"] = np.full(len(item["skill"]), advantage, np.float32)
    return Material(items, {})


def loss(settings: Any):
    """See `Objective`."""

    def clipped_loss(log_prob: jax.Array, batch: dict[str, Any]):
        return objectives.clipped_surrogate(
            log_prob,
            batch["log_prob"],
            batch["advantage"],
            batch[item_id],
            batch["mask"],
            unit=settings.unit,
            clip_low=settings.clip_low,
            clip_high=settings.clip_high,
            average=settings.average,
            length_normalise=settings.length_normalise,
            num_episodes=batch["mask"].shape[0],
            episodes=batch[item_count][0],
        )

    return clipped_loss

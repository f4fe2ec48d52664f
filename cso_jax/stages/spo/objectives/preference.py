"""GRAPE's preference loss: in each group the i-th success with the i-th failure, packed as one item, never split."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from cso_jax import objectives
from cso_jax.policies.interface import Variables
from cso_jax.rollout.episodes import EpisodeRecord
from cso_jax.run import Run
from cso_jax.stages.spo.material import Columns, Material, score_episodes

item_id, item_count = "pair_id", "pairs"


def problems(settings: Any, decisions: int) -> list[str]:
    """See `Objective`."""
    rules = (
        (not settings.critic, "config.spo.objective=preference has no advantages for a config.spo.critic"),
        (not settings.normalise_std or settings.baseline != "none",
         "config.spo.normalise_std needs a config.spo.baseline: without one there is no group to normalise by"),
        (settings.freeze_encoder,
         "config.spo.objective=preference compares with a reference on stored contexts: it needs "
         "config.spo.freeze_encoder=true"),
        (settings.preference_beta > 0, "config.spo.preference_beta must be positive"),
        (settings.minibatch_skills >= 2 * decisions,
         f"config.spo.minibatch_skills is {settings.minibatch_skills}, but a pair of episodes can hold "
         f"{2 * decisions} skills and a minibatch takes whole pairs"),
    )  # fmt: skip
    return [message for fits, message in rules if not fits]


def uses_every_group(settings: Any) -> bool:
    """See `Objective`: a group of one outcome holds no pair."""
    return False


def needs_reference(settings: Any) -> bool:
    """See `Objective`: preferences are relative to the policy that the stage starts from."""
    return True


def pair_indices(successes: Sequence[bool]) -> list[tuple[int, int]]:
    """(success, failure) attempts of one group, in order, each used once: the shorter list decides how many."""
    won = [i for i, success in enumerate(successes) if success]
    lost = [i for i, success in enumerate(successes) if not success]
    return list(zip(won, lost, strict=False))


def prepare(
    run: Run,
    groups: Sequence[Sequence[EpisodeRecord]],
    columns: Sequence[Sequence[Columns]],
    reference: Variables | None,
) -> Material:
    """Pairs with `reference_log_prob` `[D, K]` and `sign` `[D]`, 1 for the success of a pair and -1 for the failure."""
    assert reference is not None
    chosen = [
        (group[success], group[failure])
        for records, group in zip(groups, columns, strict=True)
        for success, failure in pair_indices([record.success for record in records])
    ]
    episodes = [episode for pair in chosen for episode in pair]
    for episode, log_prob in zip(episodes, score_episodes(run, reference, episodes), strict=True):
        episode["reference_log_prob"] = log_prob
    items = []
    for success, failure in chosen:
        item = {name: np.concatenate([success[name], failure[name]]) for name in success}
        item["sign"] = np.repeat([1.0, -1.0], [len(success["skill"]), len(failure["skill"])]).astype(np.float32)
        items.append(item)
    return Material(items, {"pairs": len(items)})


def loss(settings: Any):
    """See `Objective`."""

    def preference_loss(log_prob: jax.Array, batch: dict[str, Any]):
        return objectives.preference_loss(
            log_prob,
            batch["reference_log_prob"],
            batch["sign"],
            batch[item_id],
            batch["mask"],
            beta=settings.preference_beta,
            num_pairs=batch["mask"].shape[0],
            pairs=batch[item_count][0],
        )

    return preference_loss

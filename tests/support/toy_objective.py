"""An objective as docs/how_to_add_an_objective.md asks for it: the likelihood of successes alone."""

import jax.numpy as jnp
import numpy as np

from cso_jax.stages.spo.material import Material

item_id, item_count = "episode_id", "episodes"


def problems(settings, decisions):
    return [] if settings.epochs == 1 else ["config.spo.epochs must be 1 for config.spo.objective=toy"]


def uses_every_group(settings):
    return True


def needs_reference(settings):
    return False


def prepare(run, groups, columns, reference):
    items = []
    for records, group in zip(groups, columns, strict=True):
        for record, item in zip(records, group, strict=True):
            items.append(item | {"weight": np.full(len(item["skill"]), record.success, np.float32)})
    return Material(items, {"toy_items": len(items)})


def loss(settings):
    def weighted_likelihood(log_prob, batch):
        weight = batch["weight"] * batch["mask"]
        value = -jnp.sum(weight * jnp.sum(log_prob, axis=-1)) / batch[item_count][0]
        return value, {"toy_weight": jnp.sum(weight)}

    return weighted_likelihood

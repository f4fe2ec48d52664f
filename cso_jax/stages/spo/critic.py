"""A learned value in place of the group's mean: every decision with its generalised advantage (paper, Table 10).

All groups serve, also those of one outcome, because the baseline is learned.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cso_jax import learner, objectives
from cso_jax.data.dataset import BatchOrder
from cso_jax.learner import CRITIC, LearnerState
from cso_jax.networks.apply import apply
from cso_jax.policies.interface import Variables
from cso_jax.policies.observations import placeholders
from cso_jax.policies.quest.critic import ValueHead
from cso_jax.precision import exact
from cso_jax.rollout.episodes import EpisodeRecord
from cso_jax.run import Run
from cso_jax.stages.spo.material import Columns, Material, in_rows, split


def problems(settings: Any) -> list[str]:
    """What does not go together in `config.spo` with a critic."""
    rules = (
        (settings.freeze_encoder,
         "config.spo.critic reads the frozen encoder's contexts: it needs config.spo.freeze_encoder=true"),
        (settings.baseline == "mean" and not settings.normalise_std,
         "config.spo.critic takes the place of config.spo.baseline and normalise_std: leave them at mean and false"),
        (settings.critic_learning_rate > 0, "config.spo.critic_learning_rate must be positive"),
    )  # fmt: skip
    return [message for fits, message in rules if not fits]


def start(run: Run, variables: Variables) -> Any:
    """Fresh parameters of a value head for the contexts of this policy."""
    observation: dict[str, Any] = placeholders(run.spec.lowdim, run.spec.images, 1)
    history = run.policy.wants.history
    if history > 1:
        observation = {name: jnp.repeat(value[:, None], history, axis=1) for name, value in observation.items()}
    observation["task"] = jnp.zeros((1,), jnp.int32)
    context = jax.eval_shape(run.skill_policy.encode, variables, observation)
    return ValueHead().init(run.key("spo", CRITIC), jnp.zeros(context.shape, jnp.float32))["params"]


def loss(settings: Any):
    """`(trainable, batch) -> (loss, metrics)` of the value head: half the mean squared error, weighted.

    The batch holds `context` `[S, C, D]`, `value_target` and `mask` `[S]`.
    """

    @exact
    def value_loss(params: Any, batch: dict[str, Any]) -> jax.Array:
        error = apply(ValueHead(), {"params": params}, batch["context"]) - batch["value_target"]
        squares = jnp.where(batch["mask"] > 0, error, 0.0) ** 2
        return 0.5 * jnp.sum(squares) / jnp.maximum(jnp.sum(batch["mask"]), 1.0)

    def weighted(trainable: Variables, batch: dict[str, Any]):
        value = value_loss(trainable[CRITIC], batch)
        return settings.value_coefficient * value, {"value_loss": value}

    return weighted


def prepare(
    run: Run, state: LearnerState, records: Sequence[EpisodeRecord], items: list[Columns], iteration: int
) -> tuple[LearnerState, Material]:
    """Every decision with its generalised `advantage` and `value_target` `[D]`.

    Before the first ones the value head is fitted to the returns, which changes the state.
    """
    settings = run.config.spo
    contexts = np.concatenate([item["context"] for item in items])
    rewards = [np.eye(1, len(item["skill"]), len(item["skill"]) - 1)[0] * record.success
               for record, item in zip(records, items, strict=True)]  # fmt: skip
    returns = [reward[-1] * settings.discount ** np.arange(len(reward))[::-1] for reward in rewards]
    targets = np.concatenate(returns).astype(np.float32)
    if iteration == 0 and settings.critic_warmup_steps:
        fitted = fit(run, state.trainable[CRITIC], contexts, targets)
        state = state.replace(trainable={**state.trainable, CRITIC: fitted})
    values = in_rows(
        lambda rows: _values(state.trainable[CRITIC], rows["context"]), {"context": contexts}, settings.minibatch_skills
    )
    explained = float(objectives.explained_variance(values, targets))
    padded = np.zeros((2, len(items), -(-run.config.env.horizon // run.config.execution_horizon)), np.float32)
    for row, (reward, value) in enumerate(zip(rewards, split(values, items), strict=True)):
        padded[0, row, : len(reward)], padded[1, row, : len(value)] = reward, value
    estimates = np.asarray(
        objectives.gae(padded[0], padded[1], discount=settings.discount, trace_decay=settings.gae_lambda)
    )
    advantages = [row[: len(reward)] for row, reward in zip(estimates, rewards, strict=True)]
    for item, advantage, value in zip(items, advantages, split(values, items), strict=True):
        item["value_target"] = (advantage + value).astype(np.float32)
    if settings.normalise_advantage:
        together = np.concatenate(advantages)
        mean, std = together.mean(), together.std()
        advantages = [(advantage - mean) / (std + 1e-8) for advantage in advantages]
    for item, advantage in zip(items, advantages, strict=True):
        item["advantage"] = advantage.astype(np.float32)
    return state, Material(items, {"explained_variance": explained, "mean_value": float(values.mean())})


@jax.jit
@exact
def _values(params: Any, context: jax.Array) -> jax.Array:
    return apply(ValueHead(), {"params": params}, context)


def fit(run: Run, params: Any, contexts: np.ndarray, targets: np.ndarray) -> Any:
    """`config.spo.critic_warmup_steps` Adam steps of regression from contexts `[N, C, D]` to targets `[N]`.

    An unfitted head would hand the whole return to the first advantages. The optimiser is the fit's own: the one of
    the updates starts fresh after it.
    """
    settings = run.config.spo
    optimiser = optax.chain(optax.clip_by_global_norm(settings.clip_norm), optax.adam(settings.critic_learning_rate))

    @jax.jit
    @exact
    def step(params, opt_state, context, target):
        def loss(params):
            return jnp.mean((apply(ValueHead(), {"params": params}, context) - target) ** 2)

        updates, opt_state = optimiser.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    order = BatchOrder(settings.minibatch_skills, len(targets), run.seed("spo", CRITIC))
    # On one device: the same numbers whatever the mesh, and nothing that the batch must be divided for.
    params = jax.tree.map(jnp.asarray, jax.device_get(params))
    opt_state = optimiser.init(params)
    for number in range(settings.critic_warmup_steps):
        chosen = order(number)
        params, opt_state = step(params, opt_state, contexts[chosen], targets[chosen])
    return learner.replicate(params, run.mesh)

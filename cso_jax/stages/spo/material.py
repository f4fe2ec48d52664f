"""What the updates of stage spo learn from: collected groups -> rows with advantages, pairs, or value targets.

The three ways, by config.spo.objective and config.spo.critic:

- "surrogate", "reinforce": every episode with its advantage relative to its group (Eq. 8).
- a critic: every decision with its generalised advantage and the target of its value; all groups serve, also those
  of one outcome, because the baseline is learned.
- "preference": in each group the i-th success with the i-th failure, packed as one item that is never split.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cso_jax import learner, objectives
from cso_jax.data.dataset import BatchOrder
from cso_jax.learner import CRITIC, LearnerState
from cso_jax.policies.quest import policy
from cso_jax.policies.quest.critic import ValueHead
from cso_jax.precision import exact
from cso_jax.rollout.episodes import EpisodeRecord
from cso_jax.rollout.groups import GroupBatch
from cso_jax.run import Run

Columns = dict[str, np.ndarray]

_score = jax.jit(policy.score, static_argnames=("networks", "temperature"))


class Material(NamedTuple):
    """Items to be packed whole, their advantages (one number each, or one per skill), and what to log of them."""

    items: list[Columns]
    advantages: Sequence[np.ndarray]
    metrics: dict[str, float]


def uses_every_group(settings: Any) -> bool:
    """Whether groups of one outcome teach too: where the baseline is not their own mean."""
    return settings.objective != "preference" and (settings.critic or settings.baseline == "none")


def prepare(
    run: Run, state: LearnerState, groups: GroupBatch, iteration: int, reference: policy.Variables | None
) -> tuple[LearnerState, Material]:
    """The material of one iteration; the state changes where a critic is fitted before its first use.

    `reference` is the policy that preferences are relative to, None for the other objectives.
    """
    settings = run.config.spo
    columns = [[episode_columns(run, record) for record in group] for group in groups.kept]
    if reference is not None:
        return state, _pairs(run, groups.kept, columns, reference)
    flat = [item for group in columns for item in group]
    if settings.critic:
        return _with_critic(run, state, [record for group in groups.kept for record in group], flat, iteration)
    rewards = np.array([[record.success for record in group] for group in groups.kept], np.float32)
    advantages = objectives.group_advantage(rewards, baseline=settings.baseline, normalise_std=settings.normalise_std)
    return state, Material(flat, list(np.asarray(advantages).ravel()), {})


def episode_columns(run: Run, record: EpisodeRecord) -> Columns:
    """The stored decisions of an episode as columns `[D, ...]`, with its observations where the encoder is trained."""
    columns = dict(record.decisions)
    if not run.config.spo.freeze_encoder:
        assert record.observations is not None
        columns |= {f"observation/{name}": values for name, values in record.observations.items()}
        task = run.tasks.index(record.request.init.task)
        columns["observation/task"] = np.full(len(record.actions), task, np.int32)
    return columns


def pair_indices(successes: Sequence[bool]) -> list[tuple[int, int]]:
    """(success, failure) attempts of one group, in order, each used once: the shorter list decides how many."""
    won = [i for i, success in enumerate(successes) if success]
    lost = [i for i, success in enumerate(successes) if not success]
    return list(zip(won, lost, strict=False))


def _pairs(
    run: Run,
    groups: Sequence[Sequence[EpisodeRecord]],
    columns: Sequence[Sequence[Columns]],
    reference: policy.Variables,
) -> Material:
    chosen = [
        (group[success], group[failure])
        for records, group in zip(groups, columns, strict=True)
        for success, failure in pair_indices([record.success for record in records])
    ]
    episodes = [episode for pair in chosen for episode in pair]
    for episode, log_prob in zip(episodes, score_episodes(run, reference, episodes), strict=True):
        episode["reference_log_prob"] = log_prob
    items, signs = [], []
    for success, failure in chosen:
        items.append({name: np.concatenate([success[name], failure[name]]) for name in success})
        signs.append(np.repeat([1.0, -1.0], [len(success["skill"]), len(failure["skill"])]).astype(np.float32))
    return Material(items, signs, {"pairs": len(items)})


def score_episodes(run: Run, variables: policy.Variables, episodes: Sequence[Mapping[str, np.ndarray]]) -> list:
    """Log-probabilities `[D, K]` of each episode's stored skills under `variables`, on the stored contexts."""
    names = [name for name in ("context", "skill", "support") if name in episodes[0]]

    def score(rows: Columns) -> jax.Array:
        return _score(
            run.networks, variables, rows["context"], rows["skill"],
            temperature=run.config.sampling.temperature, support=rows.get("support"),
        )[0]  # fmt: skip

    stacked = {name: np.concatenate([episode[name] for episode in episodes]) for name in names}
    return _split(_in_rows(score, stacked, run.config.spo.minibatch_skills), episodes)


def _with_critic(
    run: Run, state: LearnerState, records: Sequence[EpisodeRecord], items: list[Columns], iteration: int
) -> tuple[LearnerState, Material]:
    """Generalised advantages of every decision; before the first ones the value head is fitted to the returns."""
    settings = run.config.spo
    contexts = np.concatenate([item["context"] for item in items])
    rewards = [np.eye(1, len(item["skill"]), len(item["skill"]) - 1)[0] * record.success
               for record, item in zip(records, items, strict=True)]  # fmt: skip
    returns = [reward[-1] * settings.discount ** np.arange(len(reward))[::-1] for reward in rewards]
    targets = np.concatenate(returns).astype(np.float32)
    if iteration == 0 and settings.critic_warmup_steps:
        fitted = fit_value_head(run, state.trainable[CRITIC], contexts, targets)
        state = state.replace(trainable={**state.trainable, CRITIC: fitted})
    values = _in_rows(
        lambda rows: _values(state.trainable[CRITIC], rows["context"]),
        {"context": contexts},
        settings.minibatch_skills,
    )
    explained = float(objectives.explained_variance(values, targets))
    padded = np.zeros((2, len(items), -(-run.config.env.horizon // run.config.execution_horizon)), np.float32)
    for row, (reward, value) in enumerate(zip(rewards, _split(values, items), strict=True)):
        padded[0, row, : len(reward)], padded[1, row, : len(value)] = reward, value
    estimates = np.asarray(
        objectives.gae(padded[0], padded[1], discount=settings.discount, trace_decay=settings.gae_lambda)
    )
    advantages = [row[: len(reward)] for row, reward in zip(estimates, rewards, strict=True)]
    for item, advantage, value in zip(items, advantages, _split(values, items), strict=True):
        item["value_target"] = (advantage + value).astype(np.float32)
    if settings.normalise_advantage:
        together = np.concatenate(advantages)
        mean, std = together.mean(), together.std()
        advantages = [(advantage - mean) / (std + 1e-8) for advantage in advantages]
    return state, Material(items, advantages, {"explained_variance": explained, "mean_value": float(values.mean())})


@jax.jit
@exact
def _values(params: Any, context: jax.Array) -> jax.Array:
    return policy.apply(ValueHead(), {"params": params}, context)


def start_value_head(run: Run, variables: policy.Variables) -> Any:
    """Fresh parameters of a value head for the contexts of this policy."""
    observation: dict[str, Any] = {name: jnp.zeros((1, size)) for name, size in run.spec.lowdim.items()}
    observation |= {name: jnp.zeros((1, *shape), jnp.uint8) for name, shape in run.spec.images.items()}
    observation["task"] = jnp.zeros((1,), jnp.int32)
    context = jax.eval_shape(functools.partial(policy.encode, run.networks), variables, observation)
    return ValueHead().init(run.key("spo", CRITIC), jnp.zeros(context.shape, jnp.float32))["params"]


def fit_value_head(run: Run, params: Any, contexts: np.ndarray, targets: np.ndarray) -> Any:
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
            return jnp.mean((policy.apply(ValueHead(), {"params": params}, context) - target) ** 2)

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


def _in_rows(function: Callable[[Columns], jax.Array], columns: Columns, rows: int) -> np.ndarray:
    """`function` over all rows, `rows` at a time, so that one compiled program serves any number of them."""
    total = len(next(iter(columns.values())))
    parts = []
    for first in range(0, total, rows):
        chunk = {name: values[first : first + rows] for name, values in columns.items()}
        missing = rows - len(next(iter(chunk.values())))
        padded = {name: np.concatenate([v, np.repeat(v[:1], missing, axis=0)]) for name, v in chunk.items()}
        parts.append(np.asarray(function(padded))[: rows - missing])
    return np.concatenate(parts)


def _split(values: np.ndarray, items: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
    return np.split(values, np.cumsum([len(item["skill"]) for item in items])[:-1])

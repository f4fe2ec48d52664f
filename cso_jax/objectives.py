"""The losses as pure functions: reconstruction (Eq. 1), imitation (Eq. 2, 6), the clipped surrogate (Eq. 9).

And those of the methods that it is compared with: REINFORCE, a preference loss, advantages from a learned value.
Letters: S packed skills, K tokens per skill, G groups, N episodes per group. Log-probabilities are natural, float32.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

Unit = Literal["token", "skill", "trajectory"]
Average = Literal["episode_sum", "episode_mean", "unit_mean"]
Baseline = Literal["mean", "leave_one_out", "none"]

UNITS = ("token", "skill", "trajectory")
AVERAGES = ("episode_sum", "episode_mean", "unit_mean")
BASELINES = ("mean", "leave_one_out", "none")

# exp(40) is far outside every clip range, and its square is finite in float32: an infinite ratio would turn gradients
# into NaN. Beyond it the ratio goes on as a straight line, so that an episode to be unlearnt keeps its gradient.
_MAX_LOG_RATIO = 40.0


def _ratio_of(log_ratio: chex.Array) -> chex.Array:
    beyond = jnp.maximum(log_ratio - _MAX_LOG_RATIO, 0.0)
    return jnp.exp(jnp.minimum(log_ratio, _MAX_LOG_RATIO)) * (1.0 + beyond)


def _real(mask: chex.Array, values: chex.Array) -> chex.Array:
    """`values` `[S, ...]` in float32 with zeros for padding, whatever stands there, -inf and NaN included."""
    kept = mask.reshape(mask.shape + (1,) * (values.ndim - 1)) > 0
    return jnp.where(kept, values.astype(jnp.float32), 0.0)


def reconstruction_l1(reconstruction: chex.Array, actions: chex.Array, weight: chex.Array | None = None) -> chex.Array:
    """Mean absolute error of decoded chunks `[B, T, A]` (Eq. 1). Scalar float32.

    `weight` `[T]` counts the error of each action that many times, relative to their mean; None counts all alike.
    """
    return _weighted(jnp.abs(_difference(reconstruction, actions)), weight)


def reconstruction_l2(reconstruction: chex.Array, actions: chex.Array, weight: chex.Array | None = None) -> chex.Array:
    """Mean squared error of the same, weighted alike."""
    return _weighted(jnp.square(_difference(reconstruction, actions)), weight)


def _difference(reconstruction: chex.Array, actions: chex.Array) -> chex.Array:
    chex.assert_equal_shape([reconstruction, actions])
    chex.assert_rank(actions, 3)
    return reconstruction.astype(jnp.float32) - actions.astype(jnp.float32)


def _weighted(error: chex.Array, weight: chex.Array | None) -> chex.Array:
    if weight is not None:
        chex.assert_shape(weight, (error.shape[1],))
        error *= (weight / jnp.mean(weight))[:, None]
    return jnp.mean(error)


def first_actions_weight(chunk_length: int, *, actions: int, weight: float) -> chex.Array:
    """Weights `[T]` float32 of the actions of a chunk: `weight` for the first of them, 1 for the others."""
    return jnp.where(jnp.arange(chunk_length) < actions, weight, 1.0).astype(jnp.float32)


def imitation_nll(log_prob: chex.Array, mask: chex.Array | None = None) -> chex.Array:
    """Negative log-likelihood per token of the demonstrated skills (Eq. 2 and 6, divided by the constant K).

    Args:
      log_prob: `[B, K]` log-probabilities of the target tokens.
      mask: `[B]`, 0 for rows that are padding; None when there is none.
    """
    chex.assert_rank(log_prob, 2)
    if mask is None:
        return -jnp.mean(log_prob.astype(jnp.float32))
    chex.assert_shape(mask, (log_prob.shape[0],))
    return jnp.sum(-jnp.mean(_real(mask, log_prob), axis=-1)) / jnp.maximum(jnp.sum(mask), 1.0)


def group_advantage(
    rewards: chex.Array, *, baseline: Baseline = "mean", normalise_std: bool = False, epsilon: float = 1e-6
) -> chex.Array:
    """Advantage of each episode relative to its group.

    Args:
      rewards: `[G, N]` episode rewards, one row per group.
      baseline: "mean" subtracts the group mean (Eq. 8); "leave_one_out" the mean of the other N-1 (as RIPT/RLOO),
        which equals N/(N-1) times the former; "none" nothing (plain REINFORCE).
      normalise_std: also divide by the group's sample standard deviation (ddof 1) plus `epsilon`, as GRPO does;
        without a baseline there is nothing to normalise.

    Returns: `[G, N]` float32.
    """
    chex.assert_rank(rewards, 2)
    rewards = jnp.asarray(rewards, jnp.float32)
    n = rewards.shape[1]
    if baseline == "none":
        return rewards
    if n < 2:
        raise ValueError(f"a group needs at least 2 episodes for a relative advantage, got {n}")
    advantage = rewards - jnp.mean(rewards, axis=1, keepdims=True)
    if baseline == "leave_one_out":
        advantage = advantage * (n / (n - 1))
    elif baseline != "mean":
        raise ValueError(f"baseline must be one of {BASELINES}, got {baseline!r}")
    if normalise_std:
        advantage = advantage / (jnp.std(rewards, axis=1, ddof=1, keepdims=True) + epsilon)
    return advantage


def clipped_surrogate(
    log_prob: chex.Array,
    behaviour_log_prob: chex.Array,
    advantage: chex.Array,
    episode_id: chex.Array,
    mask: chex.Array,
    *,
    unit: Unit,
    clip_low: float,
    clip_high: float,
    average: Average = "episode_sum",
    length_normalise: bool = False,
    num_episodes: int,
    episodes: chex.Array | float | None = None,
) -> tuple[chex.Array, dict[str, chex.Array]]:
    """The clipped policy-gradient surrogate over packed skills, at any granularity of the importance ratio.

    `unit="skill"` with `average="episode_sum"` is SPO (Eq. 9); "token" is GRPO's ratio; "trajectory" is GSPO's, as this
    paper writes it (Eq. 5) or, with `length_normalise`, as its own paper defines it (geometric mean over the tokens).
    `length_normalise` divides a skill's log-ratio by K likewise, and does nothing for tokens.

    Args:
      log_prob: `[S, K]` log-probabilities of the stored tokens under the policy being trained.
      behaviour_log_prob: `[S, K]` the same under the policy that acted.
      advantage: `[S]` the advantage of the skill's episode (Eq. 8).
      episode_id: `[S]` int, in [0, num_episodes); which episode a skill belongs to.
      mask: `[S]` 1 for real skills, 0 for padding.
      unit: over what one ratio is taken: "token", "skill" or "trajectory".
      clip_low, clip_high: the clip range of the ratio itself, e.g. 0.93 and 1.15. A unit is cut off where its ratio is
        outside on the side that its advantage pushes to; on a bound, and so at the behaviour parameters, it never is.
      average: "episode_sum": sum over an episode's units, mean over episodes (Eq. 9); "episode_mean": mean over an
        episode's units, mean over episodes; "unit_mean": mean over all units.
      length_normalise: see above.
      num_episodes: static upper bound of `episode_id`; episodes without a real skill do not count in any mean.
      episodes: what means over episodes divide by; None: the number of episodes with a real skill. With minibatches
        the mean number of episodes in one, so that an episode weighs the same in whichever it lands.

    Returns:
      Loss to minimise (scalar) and metrics (scalars): `clip_fraction`, the share of units with a ratio outside the
      range; `cut_fraction`, the share whose gradient the clipping really removes; `approx_kl` per token;
      `mean_abs_log_ratio`, `ratio_p05`, `ratio_p50`, `ratio_p95` over units; `mean_ratio`; `units`, their number.
    """
    chex.assert_rank(log_prob, 2)
    chex.assert_equal_shape([log_prob, behaviour_log_prob])
    chex.assert_shape([advantage, episode_id, mask], (log_prob.shape[0],))
    if unit not in UNITS:
        raise ValueError(f"unit must be one of {UNITS}, got {unit!r}")
    if average not in AVERAGES:
        raise ValueError(f"average must be one of {AVERAGES}, got {average!r}")
    if not 0.0 <= clip_low <= 1.0 <= clip_high:
        raise ValueError(f"the clip range is of the ratio itself and must contain 1, got [{clip_low}, {clip_high}]")

    mask = mask.astype(jnp.float32)
    advantage = _real(mask, advantage)
    tokens_per_skill = log_prob.shape[1]
    token_log_ratio = _real(mask, log_prob) - _real(mask, behaviour_log_prob)

    def per_episode(values):
        return jax.ops.segment_sum(values, episode_id, num_segments=num_episodes)

    skills_in_episode = per_episode(mask)
    if unit == "token":
        log_ratio = token_log_ratio
        unit_mask = jnp.broadcast_to(mask[:, None], log_ratio.shape)
        unit_advantage = jnp.broadcast_to(advantage[:, None], log_ratio.shape)
    elif unit == "skill":
        log_ratio = jnp.sum(token_log_ratio, axis=-1)
        if length_normalise:
            log_ratio = log_ratio / tokens_per_skill
        unit_mask, unit_advantage = mask, advantage
    else:
        log_ratio = per_episode(jnp.sum(token_log_ratio, axis=-1))
        if length_normalise:
            log_ratio = log_ratio / jnp.maximum(skills_in_episode * tokens_per_skill, 1.0)
        unit_mask = (skills_in_episode > 0).astype(jnp.float32)
        unit_advantage = per_episode(advantage) / jnp.maximum(skills_in_episode, 1.0)

    ratio = _ratio_of(log_ratio)
    # min(ratio A, clip(ratio) A), spelt out: `minimum` and `clip` share the gradient between equal arguments.
    too_high, too_low = (ratio > clip_high) & (unit_advantage > 0), (ratio < clip_low) & (unit_advantage < 0)
    surrogate = jnp.where(too_high, clip_high, jnp.where(too_low, clip_low, ratio)) * unit_advantage * unit_mask

    units = jnp.maximum(jnp.sum(unit_mask), 1.0)
    if episodes is None:
        episodes = jnp.maximum(jnp.sum(skills_in_episode > 0), 1.0)
    if average == "unit_mean":
        objective = jnp.sum(surrogate) / units
    elif average == "episode_sum" or unit == "trajectory":
        objective = jnp.sum(surrogate) / episodes
    else:
        units_in_skill = tokens_per_skill if unit == "token" else 1
        per_skill = jnp.sum(surrogate, axis=-1) if unit == "token" else surrogate
        episode_mean = per_episode(per_skill) / jnp.maximum(skills_in_episode * units_in_skill, 1.0)
        objective = jnp.sum(episode_mean) / episodes

    return -objective, _ratio_metrics(
        jax.lax.stop_gradient(log_ratio),
        jax.lax.stop_gradient(token_log_ratio),
        unit_advantage,
        unit_mask,
        mask,
        clip_low=clip_low,
        clip_high=clip_high,
    )


def reinforce_loss(
    log_prob: chex.Array,
    behaviour_log_prob: chex.Array,
    advantage: chex.Array,
    episode_id: chex.Array,
    mask: chex.Array,
    *,
    average: Average = "episode_sum",
    num_episodes: int,
    episodes: chex.Array | float | None = None,
) -> tuple[chex.Array, dict[str, chex.Array]]:
    """`-A log pi(Z)` of each skill, without ratio or clipping (Williams 1992); arguments as in `clipped_surrogate`.

    At the behaviour parameters its gradient is that of the skill-level surrogate. The behaviour's log-probabilities
    serve the metrics only; they hold no clip fractions, since nothing is clipped.
    """
    chex.assert_rank(log_prob, 2)
    chex.assert_equal_shape([log_prob, behaviour_log_prob])
    chex.assert_shape([advantage, episode_id, mask], (log_prob.shape[0],))
    if average not in AVERAGES:
        raise ValueError(f"average must be one of {AVERAGES}, got {average!r}")
    mask = mask.astype(jnp.float32)
    advantage = _real(mask, advantage)
    per_skill = advantage * jnp.sum(_real(mask, log_prob), axis=-1)
    skills = jax.ops.segment_sum(mask, episode_id, num_segments=num_episodes)
    if episodes is None:
        episodes = jnp.maximum(jnp.sum(skills > 0), 1.0)
    if average == "unit_mean":
        objective = jnp.sum(per_skill) / jnp.maximum(jnp.sum(mask), 1.0)
    elif average == "episode_sum":
        objective = jnp.sum(per_skill) / episodes
    else:
        sums = jax.ops.segment_sum(per_skill, episode_id, num_segments=num_episodes)
        objective = jnp.sum(sums / jnp.maximum(skills, 1.0)) / episodes
    token_log_ratio = jax.lax.stop_gradient(_real(mask, log_prob) - _real(mask, behaviour_log_prob))
    metrics = _ratio_metrics(
        jnp.sum(token_log_ratio, axis=-1), token_log_ratio, advantage, mask, mask, clip_low=0.0, clip_high=jnp.inf
    )
    return -objective, {name: value for name, value in metrics.items() if name not in ("clip_fraction", "cut_fraction")}


def preference_loss(
    log_prob: chex.Array,
    reference_log_prob: chex.Array,
    sign: chex.Array,
    pair_id: chex.Array,
    mask: chex.Array,
    *,
    beta: float,
    num_pairs: int,
    pairs: chex.Array | float | None = None,
) -> tuple[chex.Array, dict[str, chex.Array]]:
    """Trajectory-wise preference optimisation, as GRAPE defines it: a success w against a failure l of one state.

    `-log sigmoid(beta ((log pi(w) - log pi_ref(w)) - (log pi(l) - log pi_ref(l))))`, mean over the pairs, with the
    log-probability of a trajectory summed over all its tokens. At the reference it is log 2 for every pair.

    Args:
      log_prob: `[S, K]` log-probabilities of the stored tokens under the policy being trained.
      reference_log_prob: `[S, K]` the same under the reference policy.
      sign: `[S]` 1 for skills of the preferred trajectory, -1 for those of the other.
      pair_id: `[S]` int, in [0, num_pairs); which pair a skill belongs to.
      mask: `[S]` 1 for real skills, 0 for padding.
      beta: how much a difference counts; larger values keep the policy nearer to the reference.
      num_pairs: static upper bound of `pair_id`; pairs without a real skill do not count.
      pairs: what the mean divides by; None: the number of pairs with a real skill.

    Returns: loss to minimise (scalar) and metrics: mean `preference_margin` in nats (before beta), the share of pairs
      on the right side `preference_accuracy`, and their number `units`.
    """
    chex.assert_rank(log_prob, 2)
    chex.assert_equal_shape([log_prob, reference_log_prob])
    chex.assert_shape([sign, pair_id, mask], (log_prob.shape[0],))
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    gain = jnp.sum(_real(mask, log_prob) - _real(mask, reference_log_prob), axis=-1)
    margin = jax.ops.segment_sum(_real(mask, sign) * gain, pair_id, num_segments=num_pairs)
    real = (jax.ops.segment_sum(mask, pair_id, num_segments=num_pairs) > 0).astype(jnp.float32)
    present = jnp.maximum(jnp.sum(real), 1.0)
    loss = -jnp.sum(jax.nn.log_sigmoid(beta * margin) * real) / (present if pairs is None else pairs)
    return loss, {
        "preference_margin": jnp.sum(margin * real) / present,
        "preference_accuracy": jnp.sum((margin > 0) * real) / present,
        "units": jnp.sum(real),
    }


def gae(rewards: chex.Array, values: chex.Array, *, discount: float, trace_decay: float) -> chex.Array:
    """Generalised advantage estimates (Schulman et al. 2016): `sum_l (discount trace_decay)^l delta_{t+l}`.

    `delta_t = r_t + discount V_{t+1} - V_t`, and nothing comes after the last decision: an episode ends by success or
    at the horizon, which is part of the task.

    Args:
      rewards, values: `[N, D]`, one row per episode; shorter episodes are padded with zeros on the right, and their
        estimates are zero there.
      discount, trace_decay: gamma and lambda, both per decision.

    Returns: `[N, D]` float32. Added to the values they are the targets of the value function.
    """
    chex.assert_rank(rewards, 2)
    chex.assert_equal_shape([rewards, values])
    rewards, values = jnp.asarray(rewards, jnp.float32), jnp.asarray(values, jnp.float32)
    following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    deltas = rewards + discount * following - values

    def backwards(after, delta):
        advantage = delta + discount * trace_decay * after
        return advantage, advantage

    _, advantages = jax.lax.scan(backwards, jnp.zeros(rewards.shape[0]), deltas.T, reverse=True)
    return advantages.T


def explained_variance(values: chex.Array, returns: chex.Array) -> chex.Array:
    """The share of the variance of `returns` [N] that `values` [N] explain: 1 at best, 0 for a constant."""
    chex.assert_equal_shape([values, returns])
    return 1.0 - jnp.var(returns - values) / jnp.maximum(jnp.var(returns), 1e-8)


def _ratio_metrics(log_ratio, token_log_ratio, advantage, unit_mask, skill_mask, *, clip_low, clip_high):
    ratio = _ratio_of(log_ratio)
    units = jnp.maximum(jnp.sum(unit_mask), 1.0)

    def share(condition):
        return jnp.sum(condition * unit_mask) / units

    above, below = ratio > clip_high, ratio < clip_low
    token_ratio = _ratio_of(token_log_ratio)
    # The "k3" estimator of KL(behaviour || policy): non-negative for every sample.
    kl = jnp.sum((token_ratio - 1.0 - token_log_ratio) * skill_mask[:, None])
    tokens = jnp.maximum(jnp.sum(skill_mask) * token_log_ratio.shape[1], 1.0)
    quantiles = jnp.nanquantile(jnp.where(unit_mask > 0, ratio, jnp.nan), jnp.array([0.05, 0.5, 0.95]))
    return {
        "clip_fraction": share(above | below),
        "cut_fraction": share((above & (advantage > 0)) | (below & (advantage < 0))),
        "approx_kl": kl / tokens,
        "mean_abs_log_ratio": share(jnp.abs(log_ratio)),
        "mean_ratio": share(ratio),
        "ratio_p05": quantiles[0],
        "ratio_p50": quantiles[1],
        "ratio_p95": quantiles[2],
        "units": jnp.sum(unit_mask),
    }

"""The clipped surrogate: hand-worked constants, the identities between its granularities, and bad arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cso_jax import objectives
from cso_jax.data.packing import minibatches
from cso_jax.objectives import (
    clipped_surrogate,
    explained_variance,
    first_actions_weight,
    gae,
    group_advantage,
    imitation_nll,
    preference_loss,
    reconstruction_l1,
    reconstruction_l2,
    reinforce_loss,
)

SPO = {"unit": "skill", "clip_low": 0.93, "clip_high": 1.15, "average": "episode_sum"}


def packed(log_ratios, advantages, episodes, mask=None):
    """Arguments of `clipped_surrogate` whose token log-ratios are as given."""
    log_ratios = jnp.asarray(log_ratios, jnp.float32)
    behaviour = jnp.full(log_ratios.shape, -1.5, jnp.float32)
    skills = log_ratios.shape[0]
    mask = jnp.ones(skills) if mask is None else jnp.asarray(mask, jnp.float32)
    return behaviour + log_ratios, behaviour, jnp.asarray(advantages, jnp.float32), jnp.asarray(episodes), mask


def test_skill_ratio_by_hand():
    # Episode 0 has two skills with ratios exp(0.1 + 0.1) = 1.2214 and exp(-0.3) = 0.7408, advantage 1;
    # episode 1 has one skill with ratio exp(-0.3), advantage -0.5. Clipped to [0.93, 1.15]:
    #   min(1.2214, 1.15) + min(0.7408, 0.93) = 1.8908 ; min(-0.3704, -0.465) = -0.465 ; mean over the two episodes.
    arguments = packed([[0.1, 0.1], [-0.2, -0.1], [-0.2, -0.1]], [1.0, 1.0, -0.5], [0, 0, 1])
    loss, metrics = clipped_surrogate(*arguments, **SPO, num_episodes=2)
    np.testing.assert_allclose(loss, -(1.15 + np.exp(-0.3) - 0.465) / 2, rtol=1e-6)
    np.testing.assert_allclose(metrics["clip_fraction"], 1.0)
    # The first is above the range with a positive advantage, the third below it with a negative one.
    np.testing.assert_allclose(metrics["cut_fraction"], 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["mean_abs_log_ratio"], (0.2 + 0.3 + 0.3) / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["ratio_p50"], np.exp(-0.3), rtol=1e-6)


@pytest.mark.parametrize(
    ("average", "expected"),
    [("episode_sum", (1.1 + 1.1 + 1.1 - 1.0 * 1.1) / 2), ("episode_mean", (1.1 - 1.1) / 2), ("unit_mean", 2.2 / 4)],
)
def test_averages_by_hand(average, expected):
    # One token per skill, every ratio 1.1 and inside the range; three skills with advantage 1, one with -1.
    arguments = packed(np.full((4, 1), np.log(1.1)), [1, 1, 1, -1], [0, 0, 0, 1])
    loss, _ = clipped_surrogate(*arguments, unit="skill", clip_low=0.8, clip_high=1.2, average=average, num_episodes=2)
    np.testing.assert_allclose(loss, -expected, rtol=1e-5, atol=1e-6)


def test_trajectory_ratio_by_hand():
    arguments = packed([[0.1, 0.2], [0.3, -0.1], [0.05, 0.05]], [1, 1, -1], [0, 0, 1])
    keywords = {"unit": "trajectory", "clip_low": 0.0, "clip_high": 10.0, "num_episodes": 2}
    loss, metrics = clipped_surrogate(*arguments, **keywords)
    np.testing.assert_allclose(loss, -(np.exp(0.5) - np.exp(0.1)) / 2, rtol=1e-6)
    assert metrics["units"] == 2
    loss, _ = clipped_surrogate(*arguments, **keywords, length_normalise=True)
    np.testing.assert_allclose(loss, -(np.exp(0.5 / 4) - np.exp(0.1 / 2)) / 2, rtol=1e-6)


def random_batch(tokens, skills=12, episodes=5, seed=0, one_skill_each=False):
    rng = np.random.default_rng(seed)
    skills = episodes if one_skill_each else skills
    ids = np.arange(skills) if one_skill_each else np.sort(rng.integers(0, episodes, skills))
    advantage = rng.normal(size=episodes)[ids]
    return packed(rng.normal(scale=0.1, size=(skills, tokens)), advantage, ids)


@pytest.mark.parametrize("average", objectives.AVERAGES)
def test_one_token_makes_token_and_skill_equal(average):
    arguments = random_batch(tokens=1)
    keywords = {"clip_low": 0.93, "clip_high": 1.15, "average": average, "num_episodes": 5}
    token, token_metrics = clipped_surrogate(*arguments, unit="token", **keywords)
    skill, skill_metrics = clipped_surrogate(*arguments, unit="skill", **keywords)
    np.testing.assert_allclose(token, skill, rtol=1e-6)
    for name, value in token_metrics.items():
        np.testing.assert_allclose(value, skill_metrics[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("average", objectives.AVERAGES)
def test_one_skill_makes_skill_and_trajectory_equal(average):
    arguments = random_batch(tokens=4, one_skill_each=True)
    keywords = {"clip_low": 0.93, "clip_high": 1.15, "average": average, "num_episodes": 5}
    skill, _ = clipped_surrogate(*arguments, unit="skill", **keywords)
    trajectory, _ = clipped_surrogate(*arguments, unit="trajectory", **keywords)
    np.testing.assert_allclose(skill, trajectory, rtol=1e-6)


@pytest.mark.parametrize("average", objectives.AVERAGES)
@pytest.mark.parametrize("unit", objectives.UNITS)
def test_at_the_behaviour_parameters(unit, average):
    log_prob, _, advantage, ids, mask = random_batch(tokens=3)

    def loss(value):
        return clipped_surrogate(
            value, log_prob, advantage, ids, mask,
            unit=unit, clip_low=0.93, clip_high=1.15, average=average, num_episodes=5,
        )  # fmt: skip

    (_, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(log_prob)
    assert metrics["clip_fraction"] == 0 and metrics["cut_fraction"] == 0 and metrics["approx_kl"] == 0
    assert metrics["ratio_p05"] == metrics["ratio_p95"] == 1
    # The policy gradient: minus advantage, times the weight that the average gives each token.
    ids = np.asarray(ids)
    episodes, counts = len(np.unique(ids)), np.bincount(ids, minlength=5)[ids]
    tokens = log_prob.shape[1]
    per_unit = {"token": tokens, "skill": 1, "trajectory": 1}[unit]
    if unit == "trajectory":
        weight = np.full(len(ids), 1 / episodes)
    else:
        weight = {
            "episode_sum": np.full(len(ids), 1 / episodes),
            "episode_mean": 1 / (episodes * counts * per_unit),
            "unit_mean": np.full(len(ids), 1 / (len(ids) * per_unit)),
        }[average]
    expected = -(np.asarray(advantage) * weight)[:, None] * np.ones((1, tokens))
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("unit", objectives.UNITS)
@pytest.mark.parametrize("average", objectives.AVERAGES)
def test_padding_changes_nothing(unit, average):
    log_prob, behaviour, advantage, ids, mask = random_batch(tokens=3)
    keywords = {"unit": unit, "clip_low": 0.93, "clip_high": 1.15, "average": average}
    loss, metrics = clipped_surrogate(log_prob, behaviour, advantage, ids, mask, **keywords, num_episodes=5)

    def pad(value, fill):
        return jnp.concatenate([value, jnp.full((4, *value.shape[1:]), fill, value.dtype)])

    padded = (pad(log_prob, 3.0), pad(behaviour, -9.0), pad(advantage, 7.0), pad(ids, 0), pad(mask, 0.0))
    padded_loss, padded_metrics = clipped_surrogate(*padded, **keywords, num_episodes=16)
    np.testing.assert_allclose(loss, padded_loss, rtol=1e-6)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, padded_metrics[name], rtol=1e-5, err_msg=name)


def test_huge_ratio_has_a_finite_gradient():
    arguments = packed(np.full((40, 8), 5.0), np.ones(40), np.zeros(40, int))

    def loss(log_prob):
        return clipped_surrogate(
            log_prob, *arguments[1:], unit="trajectory", clip_low=0.9, clip_high=1.1, num_episodes=1
        )[0]

    assert np.isfinite(jax.grad(loss)(arguments[0])).all()


@pytest.mark.parametrize("log_ratio", [21.0, 39.0, 60.0])
def test_what_went_far_wrong_is_still_unlearnt(log_ratio):
    # min(r A, clip(r) A) is r A for A < 0 however large r: its gradient is r A, here up to exp(40).
    arguments = packed([[log_ratio]], [-1.0], [0])

    def loss(log_prob):
        return clipped_surrogate(log_prob, *arguments[1:], **SPO, num_episodes=1)[0]

    np.testing.assert_allclose(jax.grad(loss)(arguments[0]), [[np.exp(min(log_ratio, 40.0))]], rtol=1e-4)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.15), (0.93, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_on_a_bound_the_gradient_is_whole(low, high, advantage):
    arguments = packed([[0.0]], [advantage], [0])

    def loss(log_prob):
        keywords = {"unit": "skill", "clip_low": low, "clip_high": high, "num_episodes": 1}
        return clipped_surrogate(log_prob, *arguments[1:], **keywords)[0]

    np.testing.assert_allclose(jax.grad(loss)(arguments[0]), [[-advantage]], rtol=1e-6)


@pytest.mark.parametrize("garbage", [-np.inf, np.nan])
@pytest.mark.parametrize("method", ["token", "skill", "trajectory", "reinforce", "preference", "imitation"])
def test_garbage_in_padding_reaches_neither_loss_nor_gradient(method, garbage):
    log_prob, behaviour, advantage, ids, mask = random_batch(tokens=3)
    rows = len(mask)

    def loss(log_prob, behaviour, advantage, ids, mask):
        arguments = (log_prob, behaviour, advantage, ids, mask)
        if method == "imitation":
            return imitation_nll(log_prob, mask), {}
        if method == "reinforce":
            return reinforce_loss(*arguments, num_episodes=5)
        if method == "preference":
            return preference_loss(*arguments, beta=0.1, num_pairs=5)
        return clipped_surrogate(*arguments, unit=method, clip_low=0.93, clip_high=1.15, num_episodes=5)

    def pad(value, fill):
        return jnp.concatenate([value, jnp.full((4, *value.shape[1:]), fill, value.dtype)])

    padded = (pad(log_prob, garbage), pad(behaviour, garbage), pad(advantage, garbage), pad(ids, 0), pad(mask, 0.0))
    (plain, _), gradient = jax.value_and_grad(loss, has_aux=True)(log_prob, behaviour, advantage, ids, mask)
    (value, metrics), padded_gradient = jax.value_and_grad(loss, has_aux=True)(*padded)
    np.testing.assert_allclose(value, plain, rtol=1e-6)
    np.testing.assert_allclose(padded_gradient[:rows], gradient, rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(padded_gradient[rows:], 0)
    assert all(np.isfinite(metric) for metric in metrics.values())


@pytest.mark.parametrize("average", ["episode_sum", "episode_mean"])
@pytest.mark.parametrize("method", ["token", "skill", "trajectory", "reinforce", "preference"])
def test_an_episode_weighs_the_same_in_whichever_minibatch_it_lands(method, average):
    """Long failures and short successes: a small minibatch holds few of the former or many of the latter."""
    rng = np.random.default_rng(0)
    lengths = [14, 13, 2, 3, 2, 2, 3, 2]
    episodes = [
        {"skill": rng.integers(0, 9, (n, 3)), "log_prob": rng.normal(-1, 0.2, (n, 3)).astype(np.float32),
         "number": np.full(n, i), "advantage": np.full(n, -0.6 if n > 5 else 0.2, np.float32)}
        for i, n in enumerate(lengths)
    ]  # fmt: skip

    def gradient(size, seed):
        """Of the sum over the minibatches by each episode's first token's parameter."""
        batches = minibatches(episodes, size=size, seed=seed)

        def total(offsets):
            losses = []
            for batch in batches:
                log_prob = batch["log_prob"] + offsets[batch["number"]][:, None]
                arguments = (log_prob, batch["log_prob"], batch["advantage"], batch["episode_id"], batch["mask"])
                count = batch["episodes"][0]
                if method == "reinforce":
                    loss = reinforce_loss(*arguments, average=average, num_episodes=size, episodes=count)[0]
                elif method == "preference":
                    loss = preference_loss(*arguments, beta=0.1, num_pairs=size, pairs=count)[0]
                else:
                    loss = clipped_surrogate(
                        *arguments, unit=method, clip_low=0.93, clip_high=1.15, average=average, num_episodes=size,
                        episodes=count,
                    )[0]  # fmt: skip
                losses.append(loss)
            return sum(losses) / len(losses)

        return len(batches), jax.grad(total)(jnp.zeros(len(lengths)))

    (many, small), (fewer, large), (one, whole) = gradient(14, 0), gradient(24, 1), gradient(64, 2)
    assert many > fewer > one == 1
    np.testing.assert_allclose(small, whole, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(large, whole, rtol=1e-4, atol=1e-7)


def test_group_advantage_by_hand():
    rewards = jnp.array([[1.0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]])
    np.testing.assert_allclose(
        group_advantage(rewards), [[0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0], [0.5, 0.5, -0.5, -0.5]]
    )
    leave_one_out = group_advantage(rewards, baseline="leave_one_out")
    np.testing.assert_allclose(leave_one_out[0], [1, -1 / 3, -1 / 3, -1 / 3], rtol=1e-6)
    normalised = group_advantage(rewards, normalise_std=True)
    np.testing.assert_allclose(normalised[0], np.array([0.75, -0.25, -0.25, -0.25]) / 0.5, rtol=1e-4)
    np.testing.assert_allclose(normalised[1], 0)
    np.testing.assert_array_equal(group_advantage(rewards, baseline="none"), rewards)


def test_supervised_losses_by_hand():
    log_prob = jnp.log(jnp.array([[0.5, 0.25], [1.0, 0.5]]))
    np.testing.assert_allclose(imitation_nll(log_prob), np.log(2) * (1 + 2 + 0 + 1) / 4, rtol=1e-6)
    np.testing.assert_allclose(imitation_nll(log_prob, jnp.array([0.0, 1.0])), np.log(2) / 2, rtol=1e-6)
    np.testing.assert_allclose(reconstruction_l1(jnp.zeros((1, 2, 2)), jnp.array([[[1.0, -1], [0, 2]]])), 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "chunk"}, "unit must be one of"),
        ({"average": "mean"}, "average must be one of"),
        ({"clip_low": 0.2, "clip_high": 0.28}, "must contain 1"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        clipped_surrogate(*random_batch(tokens=2), **{**SPO, **changes}, num_episodes=5)


def test_one_episode_is_no_group():
    with pytest.raises(ValueError, match="at least 2 episodes"):
        group_advantage(jnp.ones((3, 1)))


def test_reinforce_by_hand():
    # Log-probabilities -1.4 and -1.2 per token of two one-token skills of episode 0 (A = 1), -1.6 of episode 1 (A = 2).
    arguments = packed([[0.1], [0.3], [-0.1]], [1.0, 1.0, 2.0], [0, 0, 1])
    for average, expected in (
        ("episode_sum", (-1.4 - 1.2 - 2 * 1.6) / 2),
        ("episode_mean", ((-1.4 - 1.2) / 2 - 2 * 1.6) / 2),
        ("unit_mean", (-1.4 - 1.2 - 2 * 1.6) / 3),
    ):
        loss, metrics = reinforce_loss(*arguments, average=average, num_episodes=4)
        np.testing.assert_allclose(loss, -expected, rtol=1e-6)
    assert "clip_fraction" not in metrics
    np.testing.assert_allclose(metrics["mean_abs_log_ratio"], 0.5 / 3, rtol=1e-5)


@pytest.mark.parametrize("average", objectives.AVERAGES)
def test_reinforce_is_the_surrogates_gradient_at_the_behaviour_parameters(average):
    log_prob, _, advantage, ids, mask = random_batch(tokens=3)
    mask = mask.at[-1].set(0)
    shared = {"average": average, "num_episodes": 5}
    plain = jax.grad(lambda value: reinforce_loss(value, log_prob, advantage, ids, mask, **shared)[0])(log_prob)
    clipped = jax.grad(
        lambda value: clipped_surrogate(
            value, log_prob, advantage, ids, mask, unit="skill", clip_low=0.93, clip_high=1.15, **shared
        )[0]
    )(log_prob)
    np.testing.assert_allclose(plain, clipped, rtol=1e-5, atol=1e-8)


def test_preference_by_hand():
    # Pair 0: the success gains 0.3 + 0.2 nats over the reference, the failure 0.1: margin 0.4. Pair 1: margin -0.6.
    gains, _, sign, pairs, mask = packed(
        [[0.1, 0.2], [0.2, 0.0], [0.05, 0.05], [-0.5, 0.0], [0.1, 0.0], [9.0, 9.0]],
        [1, 1, -1, 1, -1, 1], [0, 0, 0, 1, 1, 0], [1, 1, 1, 1, 1, 0],
    )  # fmt: skip
    reference = jnp.full(gains.shape, -1.5)
    loss, metrics = preference_loss(gains, reference, sign, pairs, mask, beta=0.5, num_pairs=6)
    expected = (np.log1p(np.exp(-0.5 * 0.4)) + np.log1p(np.exp(0.5 * 0.6))) / 2
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["preference_margin"], (0.4 - 0.6) / 2, rtol=1e-4)
    assert metrics["preference_accuracy"] == 0.5 and metrics["units"] == 2
    at_reference, _ = preference_loss(reference, reference, sign, pairs, mask, beta=0.5, num_pairs=6)
    np.testing.assert_allclose(at_reference, np.log(2), rtol=1e-6)
    with pytest.raises(ValueError, match="beta must be positive"):
        preference_loss(gains, reference, sign, pairs, mask, beta=0.0, num_pairs=6)


def test_gae_by_hand():
    # gamma 0.5, lambda 0.5. Episode 0: deltas 0.5*2 - 1 = 0, 0.5*3 - 2 = -0.5, 1 - 3 = -2.
    # A_2 = -2, A_1 = -0.5 + 0.25 * -2 = -1, A_0 = 0 + 0.25 * -1 = -0.25. Episode 1, two decisions, no reward:
    # deltas 0.5*2 - 4 = -3, -2; A_1 = -2, A_0 = -3.5.
    rewards = jnp.array([[0.0, 0, 1], [0, 0, 0]])
    values = jnp.array([[1.0, 2, 3], [4, 2, 0]])
    np.testing.assert_allclose(
        gae(rewards, values, discount=0.5, trace_decay=0.5), [[-0.25, -1, -2], [-3.5, -2, 0]], rtol=1e-6
    )
    # lambda 1: the discounted return minus the value; lambda 0: the one-step error.
    np.testing.assert_allclose(
        gae(rewards, values, discount=0.5, trace_decay=1.0)[0], [0.25 - 1, 0.5 - 2, 1 - 3], rtol=1e-6
    )
    np.testing.assert_allclose(gae(rewards, values, discount=0.5, trace_decay=0.0)[0], [0, -0.5, -2], rtol=1e-6)


def test_explained_variance_by_hand():
    returns = jnp.array([0.0, 1, 0, 1])
    np.testing.assert_allclose(explained_variance(returns, returns), 1.0)
    np.testing.assert_allclose(explained_variance(jnp.full(4, 0.3), returns), 0.0, atol=1e-6)
    np.testing.assert_allclose(explained_variance(0.5 * returns, returns), 0.75, rtol=1e-6)


def test_reconstruction_counts_each_action_by_its_weight():
    """Errors 1, 0, 0, 2 with weights 3, 1, 1, 1 (mean 1.5): (3 * 1 + 1 * 2) / 1.5 / 4."""
    weight = first_actions_weight(4, actions=1, weight=3.0)
    np.testing.assert_array_equal(weight, [3, 1, 1, 1])
    off = jnp.array([[[1.0], [0], [0], [2]]])
    np.testing.assert_allclose(reconstruction_l1(off, jnp.zeros((1, 4, 1)), weight), 5 / 6, rtol=1e-6)
    # Squared: (3 * 1 + 1 * 4) / 1.5 / 4.
    np.testing.assert_allclose(reconstruction_l2(off, jnp.zeros((1, 4, 1)), weight), 7 / 6, rtol=1e-6)
    np.testing.assert_allclose(reconstruction_l1(off, jnp.zeros((1, 4, 1)), jnp.full(4, 7.0)), 0.75, rtol=1e-6)

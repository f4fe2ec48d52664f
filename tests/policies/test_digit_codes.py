"""Codes as independent digits: the same distribution as a softmax over all codes, and its draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cso_jax import fsq
from cso_jax.policies.quest import digit_codes, prior

LEVELS = (3, 2)
# Chances of the digits 1/2, 1/4, 1/4 and 3/4, 1/4. The first level varies fastest: code 4 has the digits 1 and 1.
LOGITS = jnp.log(jnp.array([[0.5, 0.25, 0.25, 0.75, 0.25]]))


def in_full(logits, levels):
    digits = fsq.indices_to_digits(jnp.arange(fsq.codebook_size(levels)), levels)
    starts = np.cumsum([0, *levels[:-1]])
    return sum(logits[..., start + digits[:, i]] for i, start in enumerate(starts))


def test_by_hand():
    tokens = jnp.array([4])
    assert np.exp(digit_codes.log_prob_of(LOGITS, tokens, LEVELS, temperature=1.0)) == pytest.approx(1 / 16)
    # At temperature 0.5 chances are squared: 1/6 of (4, 1, 1) and 1/10 of (9, 1).
    assert np.exp(digit_codes.log_prob_of(LOGITS, tokens, LEVELS, temperature=0.5)) == pytest.approx(1 / 60)
    expected = 1.5 * np.log(2) - 0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    assert digit_codes.entropy_of(LOGITS, LEVELS, temperature=1.0) == pytest.approx(expected)
    assert digit_codes.likeliest(LOGITS.at[0, 1].set(3.0), LEVELS) == 1


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_it_is_the_softmax_over_all_codes(temperature):
    levels = (8, 5, 5, 5)
    logits = 2 * jax.random.normal(jax.random.key(0), (4, 3, sum(levels)))
    tokens = jax.random.randint(jax.random.key(1), (4, 3), 0, 1000)
    tokens = tokens.at[0].set(digit_codes.likeliest(logits[0], levels))
    full = in_full(logits, levels)
    np.testing.assert_array_equal(digit_codes.likeliest(logits, levels), jnp.argmax(full, axis=-1))
    for ours, theirs in (
        (digit_codes.log_prob_of(logits, tokens, levels, temperature=temperature),
         prior.log_prob_of(full, tokens, temperature=temperature)),
        (digit_codes.entropy_of(logits, levels, temperature=temperature),
         prior.entropy_of(full, temperature=temperature)),
    ):  # fmt: skip
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_draws_are_as_frequent_as_their_chances():
    count = 20_000
    keys = jax.random.split(jax.random.key(3), count)
    drawn = digit_codes.draw(jnp.tile(LOGITS, (count, 1)), keys, LEVELS, temperature=0.5)
    chances = np.exp(digit_codes.log_prob_of(jnp.tile(LOGITS, (6, 1)), jnp.arange(6), LEVELS, temperature=0.5))
    assert chances.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(np.bincount(drawn, minlength=6) / count, chances, atol=0.012)  # 3.5 deviations


def test_a_rows_draw_is_its_keys_alone_and_greedy_needs_none():
    keys = jax.random.split(jax.random.key(3), 5)
    logits = jax.random.normal(jax.random.key(0), (5, 5))
    together = digit_codes.draw(logits, keys, LEVELS, temperature=1.0)
    alone = [int(digit_codes.draw(logits[i : i + 1], keys[i : i + 1], LEVELS, temperature=1.0)[0]) for i in range(5)]
    assert together.tolist() == alone
    greedy = digit_codes.draw(logits, keys, LEVELS, temperature=0.0)
    np.testing.assert_array_equal(greedy, digit_codes.likeliest(logits, LEVELS))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_show(temperature):
    broken = LOGITS.at[0, 0].set(jnp.nan)
    assert np.isnan(digit_codes.log_prob_of(broken, jnp.array([4]), LEVELS, temperature=temperature)).all()

"""Hand-worked intervals and comparisons."""

import math

import pytest

from cso_jax.statistics import exact_sign_test, mean_and_interval, paired_comparison, wilson


def rows(*successes, task="push-v3", seed=0):
    return [{"task": task, "init": f"eval:{i}", "seed": seed, "success": s} for i, s in enumerate(successes)]


def test_wilson_by_hand():
    # z = 2, 5 of 10: centre (0.5 + 0.2) / 1.4 = 0.5; half 2 sqrt(0.025 + 0.01) / 1.4 = 0.267261
    assert wilson(5, 10, z=2.0) == pytest.approx((0.232739, 0.767261), abs=1e-6)
    # 8 of 10 at 95 %, a published example
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_wilson_at_the_ends():
    low, high = wilson(0, 10)
    assert low == 0.0
    assert high == pytest.approx(1.959964**2 / (10 + 1.959964**2))
    assert wilson(10, 10)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="11 successes"):
        wilson(11, 10)


def test_paired_comparison_by_hand():
    # differences 1, 1, 0, 0, -1, 1, 0, 0: mean 0.25, sum of squares 4, variance (4 - 8 / 16) / 7 = 0.5
    a = rows(0, 0, 1, 0, 1, 0, 1, 1)
    b = rows(1, 1, 1, 0, 0, 1, 1, 1)
    result = paired_comparison(a, b)
    assert (result.n, result.initial_states, result.gained, result.lost) == (8, 8, 3, 1)
    assert (result.success_a, result.success_b, result.difference) == (0.5, 0.75, 0.25)
    assert result.z == pytest.approx(1.0)
    assert (result.low, result.high) == pytest.approx((0.25 - 1.959964 * 0.25, 0.25 + 1.959964 * 0.25))
    assert result.p == 0.625  # 2 (1 + 4) / 16
    assert result.verdict == "no demonstrable difference"


def test_paired_comparison_is_antisymmetric():
    a, b = rows(0, 0, 1, 0, 1), rows(1, 1, 1, 0, 0)
    forward, back = paired_comparison(a, b), paired_comparison(b, a)
    assert forward.difference == -back.difference
    assert (forward.low, forward.gained, forward.p) == pytest.approx((-back.high, back.lost, back.p))


def test_only_shared_episodes_count_and_the_last_row_wins():
    a = rows(0, 0) + rows(1, task="only-a")
    b = rows(0, 0, 1)[::-1] + rows(1, 1)
    result = paired_comparison(a, b)
    assert (result.n, result.gained) == (2, 2)
    assert paired_comparison(a, rows(1, 1, seed=7)).n == 0


def test_no_shared_episodes():
    result = paired_comparison(rows(1), [])
    assert (result.n, result.low, result.high, result.p) == (0, -1.0, 1.0, 1.0)
    assert math.isnan(result.success_a)
    assert result.verdict == "no demonstrable difference"


def test_pairs_that_all_agree_still_have_an_interval():
    result = paired_comparison(rows(1, 1, 0), rows(1, 1, 0))
    assert result.low < 0 < result.high
    # three gains: mean 3 / 5, variance 4 / 5 - 9 / 25, both over the 5 pairs that the added halves make
    result = paired_comparison(rows(0, 0, 0), rows(1, 1, 1), z_interval=2.0)
    assert result.low == pytest.approx(0.6 - 2 * math.sqrt((4 / 5 - 0.36) / 5))
    assert (result.high, result.z) == (1.0, math.inf)


def test_seeds_that_share_an_initial_state_add_no_certainty():
    a, b = rows(0, 0, 1, 0, 1, 0, 1, 1), rows(1, 1, 1, 0, 0, 1, 1, 1)
    once = paired_comparison(a, b)
    copies_a = a + [row | {"seed": 1} for row in a]
    copies_b = b + [row | {"seed": 1} for row in b]
    twice = paired_comparison(copies_a, copies_b)
    assert (twice.n, twice.initial_states) == (16, 8)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))
    # The same where each seed has a name of its own for a state (LIBERO's benchmark has 50 states for all seeds).
    for side in (copies_a, copies_b):
        for row in side:
            row |= {"state": row["init"], "init": f"{row['init']} of seed {row['seed']}"}
    named = paired_comparison(copies_a, copies_b)
    assert (named.n, named.initial_states) == (16, 8)
    assert (named.low, named.high) == pytest.approx((once.low, once.high))


def test_states_that_all_differ_alike_still_have_an_interval():
    # Three seeds share six states; b succeeds in one seed only, so every state has the same mean difference of 1/3,
    # and rounding must not make a spread of that. As for six pairs: mean 2 / 8, second moment (2 + 1) / 8.
    a = [row | {"seed": seed} for seed in range(3) for row in rows(*[0] * 6)]
    b = [row | {"seed": seed} for seed in range(3) for row in rows(*[int(seed == 0)] * 6)]
    result = paired_comparison(a, b, z_interval=2.0)
    half = 2 * math.sqrt((3 / 8 - (2 / 8) ** 2) / 8)
    assert (result.low, result.high) == pytest.approx((0.25 - half, 0.25 + half))
    assert (result.n, result.initial_states, result.verdict) == (18, 6, "no demonstrable difference")


def test_large_effects_are_demonstrable():
    assert paired_comparison(rows(*[0] * 20, 1), rows(*[1] * 19, 0, 1)).verdict == "improvement"
    assert paired_comparison(rows(*[1] * 19, 0, 1), rows(*[0] * 20, 1)).verdict == "loss"


def test_exact_sign_test():
    assert exact_sign_test(0, 0) == 1.0
    assert exact_sign_test(5, 5) == 1.0
    assert exact_sign_test(0, 6) == exact_sign_test(6, 0) == 2 / 64


def test_mean_and_interval_over_seeds():
    # 1, 2, 3: deviation 1, t(2) = 4.302653, half width 4.302653 / sqrt(3)
    mean, low, high = mean_and_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert (low, high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)
    assert mean_and_interval([0.5])[0] == 0.5
    assert math.isnan(mean_and_interval([0.5])[1])
    # Shares of few episodes often agree to the last digit, which is no certainty; nor is what rounding leaves of it.
    for same in ([0.1, 0.1, 0.1], [0.0, 0.0], [0.3, 0.1 + 0.2]):
        assert math.isnan(mean_and_interval(same)[1]) and math.isnan(mean_and_interval(same)[2])
    with pytest.raises(ValueError, match="at least one"):
        mean_and_interval([])

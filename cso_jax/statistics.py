"""Intervals and comparisons for success rates: every number that is printed carries its uncertainty."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Z95 = 1.959964  # two-sided 95 % quantile of the standard normal distribution


def wilson(successes: int, episodes: int, z: float = Z95) -> tuple[float, float]:
    """Returns the Wilson score interval of a success rate, both ends in [0, 1]; (0, 1) where nothing was evaluated.

    Raises ValueError unless 0 <= successes <= episodes.
    """
    if not 0 <= successes <= episodes:
        raise ValueError(f"expected 0 <= successes <= episodes, found {successes} successes in {episodes} episodes")
    if episodes == 0:
        return 0.0, 1.0
    rate = successes / episodes
    scale = 1 + z**2 / episodes
    centre = (rate + z**2 / (2 * episodes)) / scale
    half = z * math.sqrt(rate * (1 - rate) / episodes + z**2 / (4 * episodes**2)) / scale
    # At 0 and at n the interval ends exactly at the rate; rounding must not put it a hair beside.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == episodes else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True)
class PairedComparison:
    """What changes from policy a to policy b on the same episodes; rates and differences as fractions, not percent."""

    n: int
    initial_states: int
    success_a: float
    success_b: float
    difference: float
    low: float
    high: float
    z: float
    gained: int
    lost: int
    p: float

    @property
    def verdict(self) -> str:
        """ "improvement" or "loss" where the interval leaves out 0, else "no demonstrable difference"."""
        if self.n == 0 or self.low <= 0 <= self.high:
            return "no demonstrable difference"
        return "improvement" if self.difference > 0 else "loss"


def paired_comparison(
    rows_a: Iterable[Mapping[str, Any]], rows_b: Iterable[Mapping[str, Any]], z_interval: float = Z95
) -> PairedComparison:
    """Compares two policies on the episodes that both have: same task, same initial state, same seed.

    Rows hold "task", "init", "seed" and "success", and "state" where initial states of several names are the same; a
    repeated episode counts once, the last row wins, and episodes that only one side has are left out. The interval is
    the normal approximation for the mean paired difference b - a with the initial state as the unit, because seeds
    that share one are not independent. Where every initial state has the same difference it has no width; the
    Agresti-Min interval (half a state added to each outcome) takes its place. `p` is the exact McNemar test over the
    `gained` and `lost` pairs. Without pairs the result is n = 0 and (-1, 1).
    """
    rows_a, rows_b = list(rows_a), list(rows_b)
    states = {(str(row["task"]), str(row["init"])): str(row.get("state", row["init"])) for row in [*rows_a, *rows_b]}
    episodes_a, episodes_b = _by_episode(rows_a), _by_episode(rows_b)
    shared = sorted(episodes_a.keys() & episodes_b.keys())
    n = len(shared)
    if n == 0:
        return PairedComparison(0, 0, math.nan, math.nan, 0.0, -1.0, 1.0, 0.0, 0, 0, 1.0)
    differences = [int(episodes_b[key]) - int(episodes_a[key]) for key in shared]
    total = sum(differences)
    mean = total / n
    # n times the residuals: whole numbers, so that states which all differ alike leave exactly nothing.
    residuals: dict[tuple[str, str], int] = {}
    for (task, init, _), difference in zip(shared, differences, strict=True):
        cluster = (task, states[task, init])
        residuals[cluster] = residuals.get(cluster, 0) + n * difference - total
    clusters = len(residuals)
    spread = math.sqrt(sum(value**2 for value in residuals.values())) / n
    error = spread / n * math.sqrt(clusters / (clusters - 1)) if clusters > 1 else 0.0
    if error > 0:
        low, high = mean - z_interval * error, mean + z_interval * error
    else:
        low, high = _agresti_min(differences, clusters, z_interval)
    gained, lost = differences.count(1), differences.count(-1)
    return PairedComparison(
        n=n,
        initial_states=clusters,
        success_a=sum(episodes_a[key] for key in shared) / n,
        success_b=sum(episodes_b[key] for key in shared) / n,
        difference=mean,
        low=max(-1.0, low),
        high=min(1.0, high),
        z=mean / error if error > 0 else math.copysign(math.inf, mean) if mean else 0.0,
        gained=gained,
        lost=lost,
        p=exact_sign_test(gained, lost),
    )


def exact_sign_test(gained: int, lost: int) -> float:
    """Returns the two-sided exact McNemar p: how likely so uneven a split of the discordant pairs is at even odds."""
    discordant = gained + lost
    tail = sum(math.comb(discordant, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def mean_and_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Returns mean, low and high of a quantity over independent seeds, by Student's t.

    One seed says nothing about the spread, and neither do seeds that happen to agree to the last digit (shares of few
    episodes do): low and high are then NaN. Raises ValueError for an empty sequence.
    """
    n = len(values)
    if n == 0:
        raise ValueError("expected at least one value, found none")
    mean = math.fsum(values) / n
    if n == 1 or math.isclose(min(values), max(values), rel_tol=1e-12, abs_tol=1e-12):
        return mean, math.nan, math.nan
    from scipy.special import stdtrit

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * deviation / math.sqrt(n)
    return mean, mean - half, mean + half


def _by_episode(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, str], bool]:
    return {(str(row["task"]), str(row["init"]), str(row.get("seed"))): bool(row["success"]) for row in rows}


def _agresti_min(differences: Sequence[int], units: int, z: float) -> tuple[float, float]:
    """As for `units` independent pairs with these shares of outcomes."""
    n = units + 2
    share = units / len(differences)
    mean = share * sum(differences) / n
    variance = (share * sum(value**2 for value in differences) + 1) / n - mean**2
    half = z * math.sqrt(variance / n)
    return mean - half, mean + half

"""SPO tolerates a wide choice of clip ranges, trajectory ratios do not: Table 9.

Three ranges at each granularity. The trajectory rows are Eq. 5's unnormalised product, as in Table 3; the last row is
GSPO as its own paper defines it, which the paper does not list. A second table puts the three ranges of a granularity
together: how far their success rates lie apart, and, with three times the runs, how the granularities compare.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from harness import results, runner, tables, variants
from harness.variants import Variant

from cso_jax.statistics import paired_comparison

# (method, granularity, low, high, success %, clip %)
_GRID = (
    ("token", variants.GRPO, 0.9, 1.1, "93.8", "1.2"),
    ("token", variants.GRPO, 0.8, 1.2, "94.2", "3.1"),
    ("token", variants.GRPO, 0.8, 1.28, "94.5", "3.5"),
    ("trajectory", variants.GSPO, 0.9997, 1.0004, "92.1", "0.8"),
    ("trajectory", variants.GSPO, 0.997, 1.004, "93.2", "1.5"),
    ("trajectory", variants.GSPO, 0.97, 1.04, "86.4", "12.3"),
    ("skill", variants.SPO, 0.97, 1.05, "95.5", "14.5"),
    ("skill", variants.SPO, 0.93, 1.15, "96.0", "11.2"),
    ("skill", variants.SPO, 0.8, 1.2, "95.8", "5.6"),
)
VARIANTS = (
    *(
        Variant(f"{unit}-{low:g}-{high:g}", f"{unit} [{low:g}, {high:g}]", variants.clipped(method, low, high),
                paper={"Long": success, "clip %": clip})
        for unit, method, low, high, success, clip in _GRID
    ),
    Variant("gspo-normalised", "trajectory, length-normalised [0.9997, 1.0004]", variants.GSPO_NORMALISED),
)  # fmt: skip
_UNITS = tuple(dict.fromkeys(unit for unit, *_ in _GRID))
_REFERENCE = "skill"
_NOTE = (
    "highest - lowest: the range that reaches most against the one that reaches least, in points; chosen after the "
    "fact, so its interval is too short.\n"
    "difference: against skill, each range paired with the skill range in the same place above. Intervals: paired on "
    "the same initial states,\n"
    "over these runs' episodes. by seed: the difference of each seed [Student's 95 % interval over seeds]."
)


def _ranges(unit: str) -> list[Variant]:
    return [one for one, (its_unit, *_) in zip(VARIANTS, _GRID, strict=False) if its_unit == unit]


def by_granularity(rows: Mapping[str, Sequence[results.Row]], title: str) -> tables.Table:
    """Per granularity, over the seeds that all its ranges have: its ranges together, and the difference to skill."""
    cells: list[list[str | None]] = []
    for unit in _UNITS:
        pairs = list(zip(_ranges(unit), _ranges(_REFERENCE), strict=True))
        found = [rows[one.name] for one, _ in pairs if rows.get(one.name)]
        seeds = set.intersection(*({row["seed"] for row in of_range} for of_range in found)) if found else set()
        found = [[row for row in of_range if row["seed"] in seeds] for of_range in found] if seeds else []
        found.sort(key=_rate)
        runs = [row for of_range in found for row in of_range]
        states = sum(row["episodes"] for row in found[0]) if found else 0
        versus = unit != _REFERENCE
        cells.append(
            [
                f"{unit}, {len(found)} of {len(pairs)} ranges",
                tables.percent_text(sum(map(_rate, found)) / len(found)) if found else None,
                tables.percent_text(_rate(found[0])) if found else None,
                tables.percent_text(_rate(found[-1])) if found else None,
                tables.difference_text(tables.difference(found[-1], found[0])) if len(found) > 1 else None,
                f"{sum(row['episodes'] for row in runs)} ({states} states, {len(runs)} runs)" if runs else None,
                tables.difference_text(_difference(rows, pairs)) if versus else None,
                _by_seed(rows, pairs) if versus else None,
            ]
        )
    columns = ("", "success %", "lowest", "highest", "highest - lowest", "n", "difference", "by seed")
    return tables.Table(title, columns, cells, _NOTE)


def _rate(of_range: Sequence[results.Row]) -> float:
    return sum(row["success"] for row in of_range) / len(of_range)


def _difference(rows: Mapping[str, Sequence[results.Row]], pairs: Sequence[tuple[Variant, Variant]]) -> Any:
    sides: tuple[list[Any], list[Any]] = ([], [])
    for rank, pair in enumerate(pairs):
        for side, one in zip(sides, reversed(pair), strict=True):
            for row in rows.get(one.name, ()):
                # A seed of each rank is a pair of its own; the initial state stays the unit of the interval.
                side.extend(episode | {"seed": f"{row['seed']}/{rank}"} for episode in results.episodes_of(row))
    comparison = paired_comparison(*sides)
    return comparison if comparison.n else None


def _by_seed(rows: Mapping[str, Sequence[results.Row]], pairs: Sequence[tuple[Variant, Variant]]) -> str | None:
    differences: dict[int, list[float]] = {}
    for one, other in pairs:
        reference = {row["seed"]: row["success"] for row in rows.get(other.name, ())}
        for row in rows.get(one.name, ()):
            if row["seed"] in reference:
                differences.setdefault(row["seed"], []).append(row["success"] - reference[row["seed"]])
    return tables.seeds_text([sum(found) / len(found) for _, found in sorted(differences.items())])


def finish(outcome: runner.Outcome) -> None:
    title = f"The clip ranges of each granularity together. Suite {outcome.options.suite.stem}."
    table = by_granularity(outcome.rows, title)
    table.write(outcome.folder, "granularities")
    runner.telemetry.show(table.as_text())


EXPERIMENT = runner.Experiment(
    "clipping", __doc__ or "", lambda _: VARIANTS, "skill-0.93-1.15", paper_columns=("Long", "clip %"),
    finish=finish,
)  # fmt: skip

if __name__ == "__main__":
    runner.start(EXPERIMENT)

"""Results beside the paper's numbers: summaries over seeds, and the same table as text, CSV and LaTeX."""

import csv
import dataclasses
import io
import math
import statistics as stdlib_statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cso_jax import config as configs
from cso_jax.files import atomic_write_text
from cso_jax.statistics import PairedComparison, mean_and_interval, paired_comparison, wilson
from harness import results

MISSING = "-"


@dataclasses.dataclass(frozen=True)
class Table:
    """A titled table of texts; empty cells are shown as missing."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | None]]
    note: str = ""

    def cells(self) -> list[list[str]]:
        """Rows of texts with `MISSING` where there is nothing. Raises ValueError for a row of another length."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"expected {len(self.columns)} cells, found {len(row)}: {list(row)}")
        return [[cell if cell else MISSING for cell in row] for row in self.rows]

    def as_text(self) -> str:
        grid = [list(self.columns), *self.cells()]
        widths = [max(len(row[i]) for row in grid) for i in range(len(self.columns))]
        lines = [
            "  ".join(
                c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in grid
        ]
        lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
        return "\n".join([self.title, "", *lines, *(["", self.note] if self.note else [])]) + "\n"

    def as_csv(self) -> str:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerows([self.columns, *self.cells()])
        return buffer.getvalue()

    def as_latex(self) -> str:
        """A tabular for booktabs."""
        lines = [
            "% " + self.title,
            f"\\begin{{tabular}}{{l{'r' * (len(self.columns) - 1)}}}",
            "\\toprule",
            " & ".join(map(_escape, self.columns)) + " \\\\",
            "\\midrule",
            *(" & ".join(map(_escape, row)) + " \\\\" for row in self.cells()),
            "\\bottomrule",
            "\\end{tabular}",
        ]
        return "\n".join([*lines, *("% " + line for line in self.note.splitlines())]) + "\n"

    def write(self, folder: Path, name: str = "table") -> None:
        """`name`.txt, .csv and .tex in the folder."""
        for suffix, text in (("txt", self.as_text()), ("csv", self.as_csv()), ("tex", self.as_latex())):
            atomic_write_text(folder / f"{name}.{suffix}", text)


def _escape(text: str) -> str:
    for character in "&%$#_{}":
        text = text.replace(character, "\\" + character)
    return text.replace("±", "$\\pm$").replace("~", "$\\sim$")


@dataclasses.dataclass(frozen=True)
class Summary:
    """One variant over its seeds; success rates as fractions."""

    seeds: tuple[int, ...]
    successes: int
    episodes: int
    mean: float
    std: float | None
    low: float
    high: float
    clip_fraction: float | None
    cut_fraction: float | None
    rollouts: float | None
    updates: float | None
    seconds: float | None


def summarise(rows: Sequence[results.Row]) -> Summary | None:
    """Mean and standard deviation (ddof 1) over seeds, and the Wilson interval of all episodes pooled.

    Raises ConfigError for runs whose images were drawn from different assets.
    """
    if not rows:
        return None
    drawn = {(row.get("versions") or {}).get("libero-assets") for row in rows if row.get("renderer", "none") != "none"}
    if len(drawn) > 1:
        raise configs.ConfigError(
            f"runs with images drawn from different assets ({', '.join(sorted(map(str, drawn)))}) are not pooled; "
            f"make them again with the same: {', '.join(str(row['workdir']) for row in rows)}"
        )
    successes, episodes = sum(row["successes"] for row in rows), sum(row["episodes"] for row in rows)
    rates = [row["success"] for row in rows]
    low, high = wilson(successes, episodes)
    return Summary(
        seeds=tuple(sorted(row["seed"] for row in rows)),
        successes=successes,
        episodes=episodes,
        mean=sum(rates) / len(rates),
        std=stdlib_statistics.stdev(rates) if len(rates) > 1 else None,
        low=low,
        high=high,
        clip_fraction=results.mean_of(rows, "clip_fraction"),
        cut_fraction=results.mean_of(rows, "cut_fraction"),
        rollouts=results.mean_of(rows, "rollouts"),
        updates=results.mean_of(rows, "updates"),
        seconds=results.mean_of(rows, "seconds"),
    )


def success_text(summary: Summary | None) -> str | None:
    """E.g. "78.3 ± 3.0", in percent; without the standard deviation for one seed."""
    if summary is None:
        return None
    return f"{100 * summary.mean:.1f}" + ("" if summary.std is None else f" ± {100 * summary.std:.1f}")


def interval_text(summary: Summary | None) -> str | None:
    return None if summary is None else f"[{100 * summary.low:.1f}, {100 * summary.high:.1f}]"


def count_text(summary: Summary | None) -> str | None:
    return None if summary is None else f"{summary.episodes} ({len(summary.seeds)})"


def percent_text(fraction: float | None) -> str | None:
    return None if fraction is None else f"{100 * fraction:.1f}"


def whole_text(count: float | None) -> str | None:
    return f"{count:.0f}" if count else None


def minutes_text(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds / 60:.1f}"


def difference(rows: Sequence[results.Row], reference: Sequence[results.Row]) -> PairedComparison | None:
    """Variant minus reference on the episodes that both have; None where they share none."""
    before, after = ([episode for row in side for episode in results.episodes_of(row)] for side in (reference, rows))
    comparison = paired_comparison(before, after)
    return comparison if comparison.n else None


def difference_text(comparison: PairedComparison | None) -> str | None:
    """E.g. "+8.0 [+2.1, +13.9]", in points."""
    if comparison is None:
        return None
    return f"{100 * comparison.difference:+.1f} [{100 * comparison.low:+.1f}, {100 * comparison.high:+.1f}]"


def by_seed_text(rows: Sequence[results.Row], reference: Sequence[results.Row]) -> str | None:
    """The difference of each seed that both have and Student's interval over them; None where they share none.

    E.g. "+8.4 -1.2 +3.6 [-8.4, +15.6]", in points; without the interval for one seed.
    """
    base = {row["seed"]: row["success"] for row in reference}
    shared = sorted((row["seed"], row["success"]) for row in rows if row["seed"] in base)
    return seeds_text([success - base[seed] for seed, success in shared])


def seeds_text(differences: Sequence[float]) -> str | None:
    """Differences, one per seed, in points, and their Student interval where they vary; None where there are none."""
    if not differences:
        return None
    text = " ".join(f"{100 * one:+.1f}" for one in differences)
    _, low, high = mean_and_interval(differences)
    if math.isnan(low):
        return text
    return f"{text} [{100 * low:+.1f}, {100 * high:+.1f}]"


NOTE = (
    "success %: mean ± standard deviation (ddof 1) over seeds. 95 %: Wilson interval of all episodes pooled. "
    "n: episodes (seeds).\n"
    "difference: points against {reference}, paired on the same initial states, with its 95 % interval over "
    "these runs' episodes.\n"
    "by seed: the difference of each seed [Student's 95 % interval over seeds], which knows how much training varies; "
    "the reference's seeds are\n"
    "in all rows, so the rows vary together.\n"
    "clip %: share of the units (tokens, skills or trajectories, whatever one ratio is taken over) with a ratio "
    "outside the clip range, mean over\n"
    "iterations; in an iteration's first of n steps no ratio has moved, so it is at most (n - 1)/n. cut %: those of "
    "them without a gradient.\n"
    "rollouts, updates: SPO's episodes and gradient steps per run. time: wall-clock minutes to make the policy, shared "
    "stages included,\n"
    "evaluations not, beside whatever else ran. Columns of the paper: other suites and another scale."
)


def compare(
    title: str,
    variants: Sequence[Any],
    rows: Mapping[str, Sequence[results.Row]],
    *,
    reference: str,
    paper_columns: Sequence[str],
    note: str = "",
) -> Table:
    """One row per variant: ours, then the paper's columns. Variants that `rows` (by name) lacks are missing cells."""
    base = rows.get(reference, ())
    label = next(variant.label for variant in variants if variant.name == reference)
    lines: list[list[str | None]] = []
    for variant in variants:
        found = rows.get(variant.name, ())
        summary = summarise(found)
        versus = None if variant.name == reference or not found or not base else difference(found, base)
        lines.append(
            [
                variant.label,
                success_text(summary),
                interval_text(summary),
                count_text(summary),
                difference_text(versus),
                None if variant.name == reference else by_seed_text(found, base),
                percent_text(summary.clip_fraction) if summary else None,
                percent_text(summary.cut_fraction) if summary else None,
                whole_text(summary.rollouts) if summary else None,
                whole_text(summary.updates) if summary else None,
                minutes_text(summary.seconds) if summary else None,
                *(variant.paper.get(column) for column in paper_columns),
            ]
        )
    columns = ["", "success %", "95 %", "n", "difference", "by seed"]
    columns += ["clip %", "cut %", "rollouts", "updates", "time"]
    columns += [f"paper: {column}" for column in paper_columns]
    text = NOTE.format(reference=label)
    return Table(title, columns, lines, f"{text}\n{note}" if note else text)

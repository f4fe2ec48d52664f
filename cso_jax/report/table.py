"""The type of a table, and of a success rate in one: the same for the page and for the terminal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cso_jax.statistics import wilson

NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Interval:
    """A success rate that knows its n: fractions in [0, 1], Wilson 95 %."""

    successes: int
    episodes: int

    @property
    def rate(self) -> float:
        return self.successes / self.episodes if self.episodes else math.nan

    @property
    def bounds(self) -> tuple[float, float]:
        return wilson(self.successes, self.episodes)

    def __str__(self) -> str:
        if not self.episodes:
            return NONE
        low, high = self.bounds
        return (
            f"{100 * self.rate:.1f} % [{100 * low:.0f}, {100 * high:.0f}] "
            f"({self.successes}/{self.episodes})"
        )  # fmt: skip


Cell = str | Interval


@dataclass(frozen=True)
class Table:
    """A titled table; the first column names the row, the others are aligned to the right."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def as_text(self) -> str:
        """Returns the table in fixed-width characters."""
        grid = [[str(cell) for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(len(row[i]) for row in grid) for i in range(len(self.columns))]
        lines = [
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in grid
        ]
        lines.insert(1, "-" * len(lines[0]))
        text = [self.title, *(line.rstrip() for line in lines)]
        return "\n".join([*text, self.note] if self.note else text)

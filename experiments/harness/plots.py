"""The plots of the experiments: small PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness import results, tables

COLOURS = ("#1f5fa8", "#d1690e", "#2f8f4e", "#b3302f", "#6b6b6b", "#7a4fa3", "#9a7b1c", "#188a8a", "#c2458b", "#111111")
MARKERS = "oDs^vPX*<>"


def figure(columns: int, width: float = 4.2, height: float = 3.2) -> tuple[Figure, Any]:
    """A figure with one row of axes."""
    drawn = Figure(figsize=(width * columns, height), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(1, columns, squeeze=False)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.3)
        one.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return drawn, axes


def save(drawn: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=110, metadata={"Software": None})


def colours_of(variants: Sequence[Any]) -> dict[str, str]:
    """The colour of each variant by name: the same in every figure of an experiment, whichever it shows."""
    return {variant.name: COLOURS[number % len(COLOURS)] for number, variant in enumerate(variants)}


def success(path: Path, variants: Sequence[Any], rows: Mapping[str, Sequence[results.Row]]) -> None:
    """Success of every variant with its interval, seeds as small points."""
    shown = [(variant, summary) for variant in variants if (summary := tables.summarise(rows.get(variant.name, ())))]
    if not shown:
        return
    drawn, (axes,) = figure(1, width=6.0, height=1.0 + 0.35 * len(shown))
    colours = colours_of(variants)
    for y, (variant, summary) in enumerate(reversed(shown)):
        colour = colours[variant.name]
        axes.plot([100 * summary.low, 100 * summary.high], [y, y], color=colour, linewidth=2)
        axes.plot(100 * summary.successes / summary.episodes, y, "D", color=colour)
        rates = [100 * row["success"] for row in rows[variant.name]]
        axes.plot(rates, [y - 0.22] * len(rates), ".", color=colour, alpha=0.7)
    axes.set_yticks(range(len(shown)), [variant.label for variant, _ in reversed(shown)])
    axes.set(xlabel="success %, 95 % interval; dots: seeds", ylim=(-0.6, len(shown) - 0.4))
    save(drawn, path)


def curves(path: Path, variants: Sequence[Any], rows: Mapping[str, Sequence[results.Row]]) -> None:
    """Reward of the training rollouts (every task alike) and clip fraction by iteration, std over seeds shaded."""
    shown = [
        variant for variant in variants if variant.stage == "spo" and variant.rounds == 1 and rows.get(variant.name)
    ]
    if not shown:
        return
    drawn, axes = figure(2, height=3.1 + 0.2 * ((len(shown) + 1) // 2))
    colours, shade = colours_of(variants), 0.18 if len(shown) < 6 else 0.07
    for variant in shown:
        for one, name, scale in ((axes[0], "train_success_task_mean", 1.0), (axes[1], "clip_fraction", 100.0)):
            steps, mean, std = over_seeds(rows[variant.name], name)
            if not len(steps):
                continue
            colour = colours[variant.name]
            marker = {"marker": "o", "markersize": 3} if len(steps) < 15 else {}
            one.plot(steps, scale * mean, color=colour, label=variant.label if one is axes[0] else None, **marker)
            one.fill_between(steps, scale * (mean - std), scale * (mean + std), color=colour, alpha=shade, linewidth=0)
    axes[0].set(xlabel="iteration", ylabel="training reward, mean over tasks")
    axes[1].set(xlabel="iteration", ylabel="units outside the clip range [%]")
    axes[1].set_ylim(bottom=0)
    drawn.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    save(drawn, path)


def over_seeds(rows: Sequence[results.Row], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Iterations, mean and standard deviation over seeds, of the iterations that every seed has."""
    series = [dict(zip(*results.series_of(row, name), strict=True)) for row in rows]
    series = [one for one in series if one]
    if not series:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    steps = sorted(set.intersection(*(set(one) for one in series)))
    values = np.array([[one[step] for step in steps] for one in series])
    std = values.std(axis=0, ddof=1) if len(series) > 1 else np.zeros(len(steps))
    return np.array(steps), values.mean(axis=0), std

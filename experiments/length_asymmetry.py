"""Long failures push trajectory ratios out of the trust region, skills of any length stay in it: section 5.4.

Each granularity's own last update, and SPO's last update seen at every granularity: mean and standard deviation of the
log-ratio and the shares of units outside that granularity's clip range and without a gradient, for successes and
failures, against the length of the episode; and the variance over the first decisions of episodes, beside what it would
be if decisions moved independently. The update measured is a whole pass (harness/log_ratios.py), so its clip fractions
lie above the training's own, which average over the pass.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from harness import log_ratios, plots, runner, variants
from harness.log_ratios import LogRatios
from harness.tables import Table, percent_text
from harness.variants import Variant

# (variant, unit of its ratio)
METHODS = (
    (Variant("spo", "skill (SPO)", variants.SKILL_RATIOS), "skill"),
    (Variant("gspo", "trajectory (GSPO, Eq. 5)", variants.GSPO), "trajectory"),
    (Variant("gspo-normalised", "trajectory (GSPO, length-normalised)", variants.GSPO_NORMALISED),
     "trajectory, normalised"),
    (Variant("grpo", "token (GRPO)", variants.GRPO), "token"),
)  # fmt: skip
COLUMNS = (
    "", "outcome", "update", "episodes", "decisions", "mean", "std", "clip %", "cut %", "paper: clip %"
)  # fmt: skip
_PAPER = {"spo": "11.2", "gspo": "46.3", "grpo": "3.4"}


def _range(variant: Variant) -> tuple[float, float]:
    return variant.changes["spo.clip_low"], variant.changes["spo.clip_high"]


def measured(outcome: runner.Outcome) -> dict[str, LogRatios]:
    """Log-ratios of all seeds by variant."""
    found = {}
    for variant in outcome.variants:
        files = [Path(row["workdir"]) / "log_ratios.npz" for row in outcome.rows.get(variant.name, ())]
        parts = [log_ratios.load(file) for file in files if file.exists()]
        parts = [part for part in parts if len(part.success)]  # a run whose last iteration made no update has none
        if parts:
            found[variant.name] = log_ratios.together(parts)
    return found


def table_of(found: dict[str, LogRatios], title: str) -> Table:
    """SPO's last update at every granularity, then each granularity's own: all episodes, successes, failures."""
    rows: list[list[str | None]] = []
    for update in ("SPO's", "own"):
        for variant, unit in METHODS:
            for outcome in ("all", "success", "failure"):
                source = found.get("spo" if update == "SPO's" else variant.name)
                paper = _PAPER.get(variant.name) if outcome == "all" and update == "own" else None
                measures = _texts(_spread(source, unit, outcome, variant))
                rows.append([variant.label, outcome, update, *measures, paper])
    note = (
        "mean, std: of the units' log-ratio after the update. clip %: share of units outside the granularity's clip "
        "range. cut %: share\noutside it without a gradient: above it in successes, below it in failures. SPO's "
        "update: the same episodes and policies\nfor every granularity; own: the variant's last iteration."
    )
    return Table(title, COLUMNS, rows, note)


def _spread(ratios: LogRatios | None, unit: str, outcome: str, variant: Variant) -> log_ratios.Spread | None:
    if ratios is None:
        return None
    everything = np.ones(len(ratios.success), bool)
    chosen = everything if outcome == "all" else ratios.success == (outcome == "success")
    return log_ratios.spread(ratios, unit, chosen, _range(variant))


def _texts(spread: log_ratios.Spread | None) -> list[str | None]:
    if spread is None:
        return [None] * 6
    shares = (percent_text(spread.clip_fraction), percent_text(spread.cut_fraction))
    return [str(spread.episodes), f"{spread.decisions:.1f}", f"{spread.mean:+.4f}", f"{spread.std:.4f}", *shares]


def prefixes_of(found: dict[str, LogRatios], title: str) -> Table:
    """Variance of the log-ratio over an episode's first decisions in SPO's last update, at a few lengths."""
    rows: list[list[str | None]] = []
    for outcome in ("success", "failure"):
        if "spo" not in found:
            continue
        steps, together, independent = log_ratios.prefix_variance(
            found["spo"], found["spo"].success == (outcome == "success")
        )
        for t in sorted({1, 2, 4, 8, 16, len(steps)} & set(steps)):
            one, other = together[t - 1], independent[t - 1]
            rows.append([outcome, str(t), f"{one:.4f}", f"{other:.4f}", f"{one / other:.2f}" if other > 0 else None])
    columns = ("", "first decisions", "variance", "if independent", "times")
    note = "times: how often the variance of independent decisions. Lengths that at least 20 episodes reach."
    return Table(title, columns, rows, note)


def bins_of(ratios: LogRatios, unit: str, clip_range: tuple[float, float], success: bool, count: int = 6) -> np.ndarray:
    """Rows (mean decisions, variance of the log-ratio, clip fraction) of episodes of like length, by their length."""
    chosen = np.flatnonzero(ratios.success == success)
    order = chosen[np.argsort(ratios.decisions[chosen], kind="stable")]
    lengths = ratios.decisions[order]
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, count + 1))) if len(order) else np.zeros(0)
    rows = []
    for low, high in itertools.pairwise(edges) if len(edges) > 1 else [(edge, edge) for edge in edges]:
        inside = np.zeros(len(ratios.success), bool)
        inside[order[(lengths >= low) & ((lengths < high) | (high == edges[-1]))]] = True
        spread = log_ratios.spread(ratios, unit, inside, clip_range)
        if spread is not None and spread.std > 0:  # one unit has no spread
            rows.append((spread.decisions, spread.std**2, 100 * spread.clip_fraction))
    return np.array(rows).reshape(-1, 3)


def draw(path: Path, found: dict[str, LogRatios], source: str | None) -> None:
    """Variance and clip fraction by length, variance of prefixes: of each variant's own update, or of `source`'s."""
    drawn, axes = plots.figure(3)
    for number, (variant, unit) in enumerate(METHODS):
        ratios = found.get(source or variant.name)
        if ratios is None:
            continue
        for success, style in ((True, {}), (False, {"linestyle": "--", "markerfacecolor": "none"})):
            rows = bins_of(ratios, unit, _range(variant), success)
            for one, column in zip(axes[:2], (1, 2), strict=True):
                one.plot(
                    rows[:, 0], rows[:, column], color=plots.COLOURS[number], marker=plots.MARKERS[number],
                    markersize=5, **style, label=variant.label if success and column == 1 else None,
                )  # fmt: skip
            if source is None or number == 0:  # the same for every granularity
                steps, together, independent = log_ratios.prefix_variance(ratios, ratios.success == success)
                line = style.get("linestyle", "-")
                axes[2].plot(steps, together, color=plots.COLOURS[number], linestyle=line)
                if source is not None:
                    axes[2].plot(steps, independent, color="#999999", linestyle=line, linewidth=1)
    axes[0].set_title("filled: successes, open: failures", fontsize=9)
    axes[0].set(xlabel="decisions of the episode", ylabel="variance of the log-ratio")
    axes[1].set(xlabel="decisions of the episode", ylabel="units outside the clip range [%]")
    grey = "" if source is None else "; grey: if independent"
    axes[2].set_title(f"solid: successes, dashed: failures{grey}", fontsize=9)
    axes[2].set(xlabel="first decisions of an episode", ylabel="variance of their log-ratio")
    if _positive(axes[0]):
        axes[0].set(yscale="log")
    if _positive(axes[2]):
        axes[2].set(xscale="log", yscale="log")
    drawn.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    plots.save(drawn, path)


def _positive(axes: Any) -> bool:
    values = [line.get_ydata() for line in axes.lines if len(line.get_ydata())]
    return bool(values) and min(part.min() for part in values) > 0


def finish(outcome: runner.Outcome) -> None:
    found = measured(outcome)
    table = table_of(found, f"Claim: {outcome.experiment.title} Suite {outcome.options.suite.stem}.")
    table.write(outcome.folder, "mechanism")
    prefixes = prefixes_of(found, f"SPO's last update over the first decisions. Suite {outcome.options.suite.stem}.")
    prefixes.write(outcome.folder, "prefixes")
    runner.telemetry.show(f"{table.as_text()}\n{prefixes.as_text()}")
    if found:
        draw(outcome.folder / "own_updates.png", found, None)
        draw(outcome.folder / "same_update.png", found, "spo")


EXPERIMENT = runner.Experiment(
    "length_asymmetry", __doc__ or "", lambda _: tuple(variant for variant, _ in METHODS), "spo",
    log_ratios=True, finish=finish,
)  # fmt: skip

if __name__ == "__main__":
    runner.start(EXPERIMENT)

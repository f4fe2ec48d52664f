"""Long failures spread trajectory ratios out of the trust region, skills of any length stay in it: section 5.4.

Each granularity's own last update, and SPO's last update seen at every granularity: the standard deviation of the
log-ratio and the share of units outside that granularity's clip range, for successes and failures, against the
length of the episode; and the variance over the first decisions of episodes, which no difference between long and
short episodes bears on. The update measured is a whole pass (see asymmetry.py), so its clip fractions lie above the
training's own, which average over the pass.
"""

import itertools
import sys
from pathlib import Path

import asymmetry
import numpy as np
import plots
import runner
import variants
from asymmetry import LogRatios
from tables import Table, percent_text
from variants import Variant

# (variant, unit of its ratio)
METHODS = (
    (Variant("spo", "skill (SPO)", variants.SPO), "skill"),
    (Variant("gspo", "trajectory (GSPO, Eq. 5)", variants.GSPO), "trajectory"),
    (Variant("gspo-normalised", "trajectory (GSPO, length-normalised)", variants.GSPO_NORMALISED),
     "trajectory, normalised"),
    (Variant("grpo", "token (GRPO)", variants.GRPO), "token"),
)  # fmt: skip
COLUMNS = (
    "", "outcome", "episodes", "decisions", "std, own update", "clip %, own update", "std, SPO's update",
    "clip %, SPO's update", "paper: clip %",
)  # fmt: skip
_PAPER = {"spo": "11.2", "gspo": "46.3", "grpo": "3.4"}


def _range(variant: Variant) -> tuple[float, float]:
    return variant.changes["spo.clip_low"], variant.changes["spo.clip_high"]


def measured(outcome: runner.Outcome) -> dict[str, LogRatios]:
    """Log-ratios of all seeds by variant."""
    found = {}
    for variant in outcome.variants:
        files = [Path(row["workdir"]) / "log_ratios.npz" for row in outcome.rows.get(variant.name, ())]
        parts = [asymmetry.load(file) for file in files if file.exists()]
        parts = [part for part in parts if len(part.success)]  # a run whose last iteration made no update has none
        if parts:
            found[variant.name] = asymmetry.together(parts)
    return found


def table_of(found: dict[str, LogRatios], title: str) -> Table:
    """Per granularity: all episodes, successes, failures; its own update, then SPO's."""
    rows: list[list[str | None]] = []
    for variant, unit in METHODS:
        for outcome in ("all", "success", "failure"):
            own = _spread(found.get(variant.name), unit, outcome, variant)
            shared = _spread(found.get("spo"), unit, outcome, variant)
            rows.append(
                [
                    variant.label,
                    outcome,
                    str(own.episodes) if own else None,
                    f"{own.decisions:.1f}" if own else None,
                    *(text for one in (own, shared) for text in _texts(one)),
                    _PAPER.get(variant.name) if outcome == "all" else None,
                ]
            )
    note = (
        "std: standard deviation of the units' log-ratio after the update. clip %: share of units outside the "
        "granularity's clip range.\nOwn update: by the variant's last iteration. SPO's update: the same episodes and "
        "policies for every granularity."
    )
    return Table(title, COLUMNS, rows, note)


def _spread(ratios: LogRatios | None, unit: str, outcome: str, variant: Variant) -> asymmetry.Spread | None:
    if ratios is None:
        return None
    everything = np.ones(len(ratios.success), bool)
    chosen = everything if outcome == "all" else ratios.success == (outcome == "success")
    return asymmetry.spread(ratios, unit, chosen, _range(variant))


def _texts(spread: asymmetry.Spread | None) -> tuple[str | None, str | None]:
    return (None, None) if spread is None else (f"{spread.std:.4f}", percent_text(spread.clip_fraction))


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
        spread = asymmetry.spread(ratios, unit, inside, clip_range)
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
            decisions, variance = asymmetry.prefix_variance(ratios, ratios.success == success)
            if source is None or number == 0:  # the same for every granularity
                axes[2].plot(decisions, variance, color=plots.COLOURS[number], linestyle=style.get("linestyle", "-"))
    axes[0].set_title("filled: successes, open: failures", fontsize=9)
    axes[0].set(xlabel="decisions of the episode", ylabel="variance of the log-ratio", yscale="log")
    axes[1].set(xlabel="decisions of the episode", ylabel="units outside the clip range [%]")
    axes[2].set_title("solid: successes, dashed: failures", fontsize=9)
    axes[2].set(
        xlabel="first decisions of an episode", ylabel="variance of their log-ratio", xscale="log", yscale="log"
    )
    drawn.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    plots.save(drawn, path)


def finish(outcome: runner.Outcome) -> None:
    found = measured(outcome)
    table = table_of(found, f"Claim: {outcome.experiment.title} Suite {outcome.options.suite.stem}.")
    table.write(outcome.folder, "mechanism")
    runner.telemetry.show(table.as_text())
    if found:
        draw(outcome.folder / "own_updates.png", found, None)
        draw(outcome.folder / "same_update.png", found, "spo")


EXPERIMENT = runner.Experiment(
    "length_asymmetry", __doc__ or "", lambda _: tuple(variant for variant, _ in METHODS), "spo",
    log_ratios=True, finish=finish,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(runner.main(EXPERIMENT))

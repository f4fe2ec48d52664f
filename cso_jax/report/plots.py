"""Plots as inline SVG that takes its colours and its font from the page, so that it follows dark mode."""

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cso_jax.report.run_files import STAGE_NAMES, Run
from cso_jax.report.tables import ranked_tasks
from cso_jax.stages import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Matplotlib draws with stand-in colours that become variables of the page's style sheet.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
BLUE, ORANGE, GREEN, RED, GREY = "#040401", "#040402", "#040403", "#040404", "#040405"
VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "grid",
    BLUE: "blue", ORANGE: "orange", GREEN: "green", RED: "red", GREY: "grey",
}  # fmt: skip
_BY_NAME = {name: colour for colour, name in VARIABLES.items()}
STAGE_COLOURS = {one.name: _BY_NAME[one.colour] for one in table.EVALUATIONS.values()}

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "legend.fontsize": 10.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
}

Lines = Sequence[tuple[str, str, str]]  # metric, label, colour


def draw(paint: Callable[["Axes"], None], description: str, width: float = 320, height: float = 215) -> str:
    """Returns the SVG text of one pair of axes that `paint` fills; width and height in CSS pixels."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(buffer.getvalue(), description)


def success_by_stage(run: Run) -> str:
    """Dots and Wilson intervals: every stage overall, then every task; "" before the first evaluation."""
    stages = run.stages
    if not stages:
        return ""
    tasks = ranked_tasks(run)[::-1]  # the axis counts upwards
    names = [*tasks, "all tasks"] if len(tasks) > 1 else tasks

    def paint(axes: "Axes") -> None:
        gap = 0.62 / max(1, len(stages))
        for i, stage in enumerate(stages):
            offset = (len(stages) - 1) * gap / 2 - i * gap
            cells = [run.overall(stage) if name == "all tasks" else run.results[stage].get(name) for name in names]
            points = [(y + offset, cell) for y, cell in enumerate(cells) if cell is not None and cell.episodes]
            colour = STAGE_COLOURS[stage]
            for y, cell in points:
                axes.plot([100 * bound for bound in cell.bounds], [y, y], color=colour, linewidth=1.6)
            axes.plot(
                [100 * cell.rate for _, cell in points], [y for y, _ in points],
                color=colour, marker=table.EVALUATIONS[stage].marker, markersize=5, linestyle="none",
                label=STAGE_NAMES[stage],
            )  # fmt: skip
        if len(names) > 1:
            axes.axhline(len(names) - 1.5, color=MUTED, linewidth=0.8)
        axes.set(xlim=(-2, 102), ylim=(-0.6, len(names) - 0.4), xlabel="success rate [%], 95 % Wilson interval")
        axes.set_yticks(range(len(names)), names)
        axes.grid(False, axis="y")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(stages), handletextpad=0.3)

    step = 15 * len(stages) + 6
    return draw(paint, "Success rate by task and stage with intervals", 460, 84 + step * len(names))


def curves(
    run: Run,
    stage: str,
    lines: Lines,
    xlabel: str,
    ylabel: str,
    *,
    log: bool | None = None,
    limits: tuple[float, float] | None = None,
    reference: Sequence[float] = (),
    smooth: bool = False,
) -> str:
    """Metrics of a stage over its steps; "" where none was recorded.

    `log` None takes a logarithmic axis where the values span more than a factor of 30. `smooth` adds a running mean
    over a tenth of the points to noisy series and fades the points themselves.
    """
    series = [(run.series(stage, name), label, colour) for name, label, colour in lines]
    series = [item for item in series if item[0][0]]
    if not series:
        return ""
    values = [value for (_, ys), _, _ in series for value in ys]
    use_log = min(values) > 0 and (max(values) > 30 * min(values) if log is None else log)

    def paint(axes: "Axes") -> None:
        for (xs, ys), label, colour in series:
            window = len(ys) // 10 if smooth else 0
            marker: dict[str, Any] = {"marker": "o", "markersize": 3} if len(xs) < 15 else {}
            if window > 1:
                axes.plot(xs, ys, color=colour, alpha=0.35, linewidth=1)
                label = f"{label}, mean of {window}" if label else f"running mean of {window}"
                axes.plot(xs, running_mean(ys, window), color=colour, label=label)
            else:
                axes.plot(xs, ys, color=colour, label=label or None, **marker)
        for value in reference:
            axes.axhline(value, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        if use_log:
            axes.set_yscale("log")
        elif limits is not None:
            axes.set_ylim(*limits)
        _finish(axes, xlabel, ylabel)

    return draw(paint, f"{STAGE_NAMES.get(stage, stage)}: {ylabel} by {xlabel}")


def ratio_quantiles(run: Run) -> str:
    """Median and 5-95 % band of the probability ratio over the SPO iterations, with the clip range if known."""
    steps, low = run.series("spo", "ratio_p05")
    middle, high = run.series("spo", "ratio_p50")[1], run.series("spo", "ratio_p95")[1]
    if not steps or not len(low) == len(middle) == len(high):
        return ""
    clip = [value for value in (find_value(run.config, key) for key in ("clip_low", "clip_high")) if value is not None]

    def paint(axes: "Axes") -> None:
        axes.fill_between(steps, low, high, color=BLUE, alpha=0.22, linewidth=0, label="5 to 95 %")
        axes.plot(steps, middle, color=BLUE, label="median")
        for i, value in enumerate(clip):
            axes.axhline(value, color=RED, linewidth=1, linestyle=(0, (4, 3)), label="clip range" if i == 0 else None)
        _finish(axes, "iteration", "probability ratio")

    return draw(paint, f"Quantiles of the {ratio_unit(run)[0]} ratio by SPO iteration")


def codebook_usage(counts: Sequence[int]) -> str:
    """How often each code is used, most used first; "" where nothing was counted."""
    ordered = sorted((count for count in counts if count > 0), reverse=True)
    if not ordered:
        return ""

    def paint(axes: "Axes") -> None:
        edges = [i + 0.5 for i in range(len(ordered) + 1)]
        floor = 0.8 if ordered[0] > 30 else 0.0
        axes.stairs(ordered, edges, baseline=floor, fill=True, color=BLUE, alpha=0.55, linewidth=0)
        uniform = sum(ordered) / len(counts)
        axes.axhline(uniform, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), label=f"all equal: {uniform:,.0f}")
        if floor:
            axes.set_yscale("log")
            axes.set_ylim(bottom=floor)
        axes.set_xlim(0.5, len(counts) + 0.5)
        _finish(axes, f"code by frequency, of {len(counts)}", "times used")

    return draw(paint, "Codebook use by rank", 460, 220)


def learning_plots(run: Run) -> list[tuple[str, str]]:
    """(title, SVG) of the training curves that exist."""
    guided = bool(run.config.get("prior", {}).get("guide"))
    plots = [
        ("Codebook: reconstruction", curves(run, "codebook", [("loss", "", BLUE)], "gradient step", "loss")),
        ("Codebook: codes in use", curves(
            run, "codebook", [("codes_used", "codes used", BLUE), ("perplexity", "perplexity", ORANGE)],
            "gradient step", "codes", log=False)),
        ("Behaviour cloning: error of the chunk", curves(
            run, "reference", [("loss", "training", GREY), ("validation_loss", "validation", GREEN)],
            "gradient step", "mean absolute error")),
        ("Imitation: error of the regressed chunk" if guided else "Imitation: next-token loss", curves(
            run, "imitation", [("loss", "training", GREY), ("validation_loss", "validation", BLUE)],
            "gradient step", "mean absolute error" if guided else "loss [nats per token]")),
        ("Imitation: token accuracy", curves(
            run, "imitation", [("token_accuracy", "", GREY)], "gradient step", "accuracy", log=False)),
        ("R-SFT: next-token loss", curves(
            run, "rsft", [("loss", "training", ORANGE), ("validation_loss", "validation", BLUE)],
            "gradient step", "loss [nats per token]")),
        ("R-SFT: memory filled by rollouts", curves(
            run, "rsft_collect", [("filled_fraction", "", ORANGE)], "wave", "fraction filled", limits=(0, 1.02),
            log=False)),
        ("SPO: success of training rollouts", curves(
            run, "spo", [("train_success", "all episodes", GREY), ("train_success_task_mean", "mean over tasks", BLUE)],
            "iteration", "success rate", limits=(-0.02, 1.02), log=False,
            smooth=True)),
        ("SPO: entropy of the policy", curves(
            run, "spo", [("entropy", "", BLUE)], "iteration", "entropy [nats per token]", log=False, smooth=True)),
    ]  # fmt: skip
    return [(title, svg) for title, svg in plots if svg]


def diagnostic_plots(run: Run) -> list[tuple[str, str]]:
    """(title, SVG) of what tells whether the SPO updates are healthy."""
    unit = ratio_unit(run)
    plots = [
        (f"{unit[1].capitalize()} outside the clip range", curves(
            run, "spo", [("clip_fraction", "outside the range", BLUE), ("cut_fraction", "gradient cut", ORANGE)],
            "iteration", f"fraction of {unit[1]}", log=False)),
        (f"{unit[0].capitalize()} ratio", ratio_quantiles(run)),
        ("Groups with a learning signal", curves(
            run, "spo", [("informative_fraction", "", GREEN)], "iteration", "fraction of groups", limits=(-0.02, 1.02),
            log=False, smooth=True)),
        ("Distance from the behaviour policy", curves(
            run, "spo", [("approx_kl", "approximate KL", BLUE), ("mean_abs_log_ratio", "mean |log ratio|", ORANGE)],
            "iteration", "nats")),
        ("Length of episodes", curves(
            run, "spo", [("mean_steps_success", "successes", BLUE), ("mean_steps_failure", "failures", ORANGE)],
            "iteration", "environment steps", log=False)),
        ("Rollout against update log-probability", curves(
            run, "spo", [("log_prob_drift", "", RED)], "iteration", "difference [nats]", log=True)),
        ("Duration of an iteration", curves(run, "spo", [("seconds", "", GREY)], "iteration", "seconds", log=False)),
    ]  # fmt: skip
    return [(title, svg) for title, svg in plots if svg]


def ratio_unit(run: Run) -> tuple[str, str]:
    """Singular and plural of what one ratio is taken over: the skill, or what an ablation chose in its place."""
    spo = run.config.get("spo")
    unit = str(spo.get("unit", "skill")) if isinstance(spo, dict) else "skill"
    return unit, {"trajectory": "trajectories"}.get(unit, f"{unit}s")


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Returns the centred mean over `window` points, over fewer at the ends."""
    half = window // 2
    spans = [values[max(0, i - half) : i - half + window] for i in range(len(values))]
    return [sum(span) / len(span) for span in spans]


def find_value(config: Any, key: str) -> float | None:
    """The first number stored under `key` at any depth of a nested configuration."""
    if not isinstance(config, dict):
        return None
    value = config.get(key)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return next((found for item in config.values() if (found := find_value(item, key)) is not None), None)


def _finish(axes: "Axes", xlabel: str, ylabel: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(False, axis="x")
    if axes.get_legend_handles_labels()[1]:
        # Above the data: a legend inside the axes always hides something.
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.1, handlelength=1.4,
                    columnspacing=1.2)  # fmt: skip


def _for_page(svg: str, description: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.S)  # would apply to the whole page
    box = re.search(r'viewBox="([^"]*)"', svg)
    if box is None:
        raise ValueError("expected a viewBox in the SVG that matplotlib wrote")
    width = float(box.group(1).split()[2])
    opening = (
        f'<svg viewBox="{box.group(1)}" role="img" aria-label="{description}" style="max-width:{1.3 * width:.0f}px">'
    )
    svg = re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1, flags=re.S)
    prefix = f"p{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"  # all plots share one page: their ids must differ
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}", svg)
    svg = re.sub(r'xlink:href="#', f'href="#{prefix}', svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--font)", svg)
    for colour, name in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return re.sub(r"\n\s*", "\n", svg).strip()

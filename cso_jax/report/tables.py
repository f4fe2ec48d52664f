"""What a run directory holds, and the tables made of it: the same rows for the page and for the terminal."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from cso_jax.files import PathLike, read_jsonl
from cso_jax.statistics import PairedComparison, paired_comparison, wilson
from cso_jax.telemetry import PhaseClock, duration_text

EVALUATED = ("imitation", "rsft", "spo")  # in the order in which a run reaches them
STAGE_NAMES = {
    "demos": "Demonstrations",
    "codebook": "Codebook",
    "imitation": "Imitation",
    "rsft": "R-SFT",
    "rsft_collect": "R-SFT rollouts",
    "spo": "SPO",
    "report": "Report",
}
PHASES = ("physics", "rendering", "inference", "update", "compile", "data", "wait", "checkpoint", "other")
NONE = "\N{EN DASH}"
SUCCESS_TITLE = "Success by task and stage"


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


@dataclass(frozen=True)
class Run:
    """Everything the report reads, with empty values for what the run has not made yet."""

    workdir: Path
    config: dict[str, Any]
    config_hash: str
    results: dict[str, dict[str, Interval]]
    episodes: dict[str, list[dict[str, Any]]]
    metrics: dict[str, list[dict[str, Any]]]
    timing: dict[str, dict[str, float]]
    codebook_counts: list[int]
    rsft_summary: dict[str, dict[str, Any]]
    videos: list[Path]
    problems: list[str] = field(default_factory=list)

    @property
    def stages(self) -> list[str]:
        """The evaluated stages that have results, in order."""
        return [stage for stage in EVALUATED if self.results.get(stage)]

    def overall(self, stage: str) -> Interval:
        """All tasks of a stage together."""
        cells = self.results[stage].values()
        return Interval(sum(cell.successes for cell in cells), sum(cell.episodes for cell in cells))

    def series(self, stage: str, name: str) -> tuple[list[float], list[float]]:
        """Returns steps and values of one metric, without the rows where it is missing or was not finite."""
        pairs = [
            (float(row["step"]), float(row[name]))
            for row in self.metrics.get(stage, [])
            if _is_number(row.get(name)) and _is_number(row.get("step"))
        ]
        return [step for step, _ in pairs], [value for _, value in pairs]


def load_run(workdir: PathLike) -> Run:
    """Reads a run directory; files that are missing are empty, files that cannot be read are named in `problems`."""
    folder = Path(workdir)
    problems: list[str] = []
    config = _read_json(folder / "config.json", problems)
    raw = _read_json(folder / "results.json", problems)
    episodes = _by_stage(
        row for row in read_jsonl(folder / "episodes.jsonl") if {"task", "init", "success"} <= set(row)
    )
    usage = _read_json(folder / "codebook_usage.json", problems).get("counts", [])
    return Run(
        workdir=folder,
        config=config,
        config_hash=str(raw.get("config_hash", "")),
        results=_results(raw) or _results_of_episodes(episodes),
        episodes=episodes,
        metrics=_by_stage(read_jsonl(folder / "metrics.jsonl")),
        timing={
            stage: {phase: float(value) for phase, value in phases.items() if _is_number(value)}
            for stage, phases in PhaseClock.load(folder / "timing.json").items()
            if isinstance(phases, dict)
        },
        codebook_counts=[int(count) for count in usage] if isinstance(usage, list) else [],
        rsft_summary={
            task: row
            for task, row in _read_json(folder / "rsft_summary.json", problems).items()
            if isinstance(row, dict)
        },
        videos=sorted((folder / "videos").glob("*.gif")),
        problems=problems,
    )


def success_table(run: Run) -> Table | None:
    """Task x stage with intervals, the best task first, all tasks together on top."""
    stages = run.stages
    if not stages:
        return None
    tasks = ranked_tasks(run)
    rows: list[list[Cell]] = [["all tasks", *(run.overall(stage) for stage in stages)]]
    rows += [[task, *(run.results[stage].get(task, NONE) for stage in stages)] for task in tasks]
    columns = ["task", *(STAGE_NAMES[stage] for stage in stages)]
    if len(stages) > 1:
        columns.append(f"{STAGE_NAMES[stages[0]]} → {STAGE_NAMES[stages[-1]]}, points")
        rows[0].append(change_text(compare(run, stages[0], stages[-1])))
        for row, task in zip(rows[1:], tasks, strict=True):
            row.append(change_text(compare(run, stages[0], stages[-1], task)))
    note = "Success rate, 95 % Wilson interval in brackets, then successes/episodes."
    if len(stages) > 1:
        note += " Last column: paired difference on the same initial states with its 95 % interval."
    return Table(SUCCESS_TITLE, columns, rows, note)


def ranked_tasks(run: Run) -> list[str]:
    """Every evaluated task, the highest success after the last stage first."""
    last = run.results[run.stages[-1]] if run.stages else {}

    def rank(task: str) -> tuple[float, str]:
        cell = last.get(task)
        return (-cell.rate if cell is not None and cell.episodes else 1.0, task)

    return sorted({task for stage in run.stages for task in run.results[stage]}, key=rank)


def compare(run: Run, before: str, after: str, task: str | None = None) -> PairedComparison:
    """The paired comparison of two stages, on one task or on all."""
    rows_a, rows_b = (
        [row for row in run.episodes.get(stage, []) if task is None or row["task"] == task] for stage in (before, after)
    )
    return paired_comparison(rows_a, rows_b)


def change_text(comparison: PairedComparison) -> str:
    """Returns e.g. "+8.0 [+2, +14]" in percentage points."""
    if comparison.n == 0:
        return NONE
    low, high = 100 * comparison.low, 100 * comparison.high
    return f"{_points(comparison.difference)} [{low:+.0f}, {high:+.0f}]"


def comparison_sentences(run: Run) -> list[tuple[str, str]]:
    """One plain sentence for each step of the cascade, and for the whole of it, with its verdict."""
    stages = run.stages
    pairs = list(pairwise(stages))
    if len(stages) > 2:
        pairs.append((stages[0], stages[-1]))
    sentences = []
    for before, after in pairs:
        names = f"{STAGE_NAMES[before]} → {STAGE_NAMES[after]}"
        result = compare(run, before, after)
        if result.n == 0:
            sentences.append((f"{names}: not compared, the two evaluations share no initial states.", "unknown"))
            continue
        states = f" on {result.initial_states} initial states" if result.initial_states != result.n else ""
        text = (
            f"{names}: {result.verdict}, {_points(result.difference)} points "
            f"(95 % interval {100 * result.low:+.1f} to {100 * result.high:+.1f}; "
            f"n = {result.n} paired episodes{states}, {result.gained} gained, {result.lost} lost, "
            f"exact p {_p_text(result.p)})."
        )
        sentences.append((text, result.verdict))
    return sentences


def timing_table(run: Run) -> Table | None:
    """Seconds by stage and phase."""
    if not run.timing:
        return None
    phases = present_phases(run)
    order = timed_stages(run)
    rows: list[list[Cell]] = []
    for stage in order:
        values = run.timing[stage]
        cells = [_seconds_text(values[phase]) if phase in values else NONE for phase in phases]
        rows.append([stage_label(stage), *cells, duration_text(sum(values.values()))])
    totals = [sum(run.timing[stage].get(phase, 0.0) for stage in order) for phase in phases]
    rows.append(["all stages", *map(_seconds_text, totals), duration_text(sum(totals))])
    note = "Seconds of the controlling process, all resumed runs together; each second is booked once."
    return Table("Where the time went", ["stage", *phases, "total"], rows, note)


def timed_stages(run: Run) -> list[str]:
    """The stages with recorded time in the order in which a run reaches them, each evaluation after its stage."""
    order = [name for stage in STAGE_NAMES for name in (stage, f"evaluate {stage}")]
    return sorted(run.timing, key=lambda stage: order.index(stage) if stage in order else len(order))


def stage_label(stage: str) -> str:
    """The name of a stage, or of its evaluation, as the reader sees it."""
    action, _, evaluated = stage.partition(" ")
    if action == "evaluate" and evaluated in STAGE_NAMES:
        return f"{STAGE_NAMES[evaluated]} evaluation"
    return STAGE_NAMES.get(stage, stage)


def present_phases(run: Run) -> list[str]:
    """The phases that took any time, the known ones in a fixed order."""
    used = {phase for phases in run.timing.values() for phase, seconds in phases.items() if seconds > 0}
    return [phase for phase in PHASES if phase in used] + sorted(used - set(PHASES))


def collection_table(run: Run) -> Table | None:
    """What R-SFT rolled out and kept, by task."""
    if not run.rsft_summary:
        return None
    rows: list[list[Cell]] = []
    totals = dict.fromkeys(("successes", "rollouts", "kept", "states", "states_without_success"), 0)
    for task, row in sorted(run.rsft_summary.items()):
        counts = {name: int(row.get(name) or 0) for name in totals}
        totals = {name: totals[name] + counts[name] for name in totals}
        rows.append(_collection_row(task, counts))
    if len(rows) > 1:
        rows.append(_collection_row("all tasks", totals))
    columns = ["task", "rollouts that succeeded", "kept", "initial states", "without any success"]
    note = "Successful rollouts are kept for fine-tuning; initial states without any success stay uncovered."
    return Table("R-SFT collection", columns, rows, note)


def demos_table(run: Run) -> Table | None:
    """Attempts and successes of the scripted experts, by task."""
    latest: dict[str, Interval] = {}
    for row in run.metrics.get("demos", []):
        if isinstance(row.get("task"), str) and _is_number(row.get("attempts")) and _is_number(row.get("successes")):
            attempts, successes = int(row["attempts"]), int(row["successes"])
            if 0 <= successes <= attempts:
                latest[row["task"]] = Interval(successes, attempts)
    if not latest:
        return None
    rows: list[list[Cell]] = [[task, cell] for task, cell in sorted(latest.items())]
    return Table("Demonstrations", ["task", "attempts that succeeded"], rows)


def codebook_sentence(run: Run) -> str:
    """Codes used of N and the perplexity of their use, or "" where no usage was recorded."""
    counts = [count for count in run.codebook_counts if count > 0]
    total = sum(counts)
    if not total:
        return ""
    entropy = -sum(count / total * math.log(count / total) for count in counts)
    size = len(run.codebook_counts)
    return (
        f"{len(counts)} of {size} codes used ({100 * len(counts) / size:.1f} %), perplexity {math.exp(entropy):.0f}, "
        f"n = {total:,} tokens."
    )


def protocol_table(run: Run) -> Table | None:
    """What the evaluated episodes have in common: horizon, renderer, seeds and package versions."""
    rows: list[list[Cell]] = []
    episodes = [row for stage in run.stages for row in run.episodes.get(stage, [])]
    for name in ("horizon", "renderer", "seed"):
        values = sorted({str(row[name]) for row in episodes if row.get(name) is not None}, key=lambda v: (len(v), v))
        if values:
            rows.append([name, ", ".join(values[:12]) + (f" and {len(values) - 12} more" if len(values) > 12 else "")])
    versions: dict[str, set[str]] = {}
    for row in episodes:
        found = row.get("versions")
        for name, value in found.items() if isinstance(found, dict) else [("versions", found)] if found else []:
            versions.setdefault(str(name), set()).add(str(value))
    rows += [[name, ", ".join(sorted(values))] for name, values in sorted(versions.items())]
    return Table("Evaluation protocol and versions", ["", "value"], rows) if rows else None


def all_tables(run: Run) -> list[Table]:
    """The tables that this run can fill, in reading order."""
    makers = (success_table, collection_table, demos_table, timing_table, protocol_table)
    return [table for table in (maker(run) for maker in makers) if table is not None]


def _collection_row(task: str, counts: Mapping[str, int]) -> list[Cell]:
    successes, rollouts = counts["successes"], counts["rollouts"]
    share: Cell = Interval(successes, rollouts) if 0 <= successes <= rollouts else f"{successes}/{rollouts}"
    return [task, share, str(counts["kept"]), str(counts["states"]), str(counts["states_without_success"])]


def _results(raw: Mapping[str, Any]) -> dict[str, dict[str, Interval]]:
    results: dict[str, dict[str, Interval]] = {}
    for stage in EVALUATED:
        tasks = raw.get(stage)
        for task, cell in tasks.items() if isinstance(tasks, dict) else ():
            if isinstance(cell, dict) and _is_number(cell.get("successes")) and _is_number(cell.get("episodes")):
                results.setdefault(stage, {})[task] = Interval(int(cell["successes"]), int(cell["episodes"]))
    return results


def _results_of_episodes(episodes: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, Interval]]:
    results: dict[str, dict[str, Interval]] = {}
    for stage in EVALUATED:
        outcome = {(row["task"], row["init"], str(row.get("seed"))): row["success"] for row in episodes.get(stage, [])}
        for task in sorted({key[0] for key in outcome}):
            values = [bool(success) for key, success in outcome.items() if key[0] == task]
            results.setdefault(stage, {})[task] = Interval(sum(values), len(values))
    return results


def _by_stage(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    stages: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        stages.setdefault(str(row.get("stage")), []).append(row)
    return stages


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        problems.append(f"{path.name} could not be read ({error}); what it holds is missing below.")
        return {}
    return content if isinstance(content, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _seconds_text(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.1f}"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}" if difference else "0.0"


def _p_text(p: float) -> str:
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"

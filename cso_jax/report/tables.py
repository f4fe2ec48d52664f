"""The tables and sentences made of a run: the same rows for the page and for the terminal."""

import math
from collections.abc import Mapping
from itertools import pairwise

from cso_jax.report.run_files import STAGE_NAMES, Run, is_number
from cso_jax.report.table import NONE, Cell, Interval, Table
from cso_jax.results import codebook_cost
from cso_jax.statistics import PairedComparison, paired_comparison
from cso_jax.telemetry import duration_text

PHASES = ("physics", "rendering", "inference", "update", "compile", "data", "wait", "checkpoint", "other")
SUCCESS_TITLE = "Success by task and stage"
DATA_TITLE = "What the data allows"
_BASE = "imitation"  # the step that the references are compared with


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


def data_rows(run: Run) -> list[str]:
    """The references, and the policy that the cascade starts from beside them; empty without references."""
    return [*run.references, *(name for name in run.stages if name == _BASE)] if run.references else []


def data_table(run: Run) -> Table | None:
    """What the demonstrations allow: behaviour cloning, its chunks through the codebook, imitation greedy, sampled."""
    names = data_rows(run)
    if not names:
        return None
    first, *others = names
    rows: list[list[Cell]] = [[_data_label(first), run.overall(first), NONE]]
    rows += [[_data_label(name), run.overall(name), change_text(compare(run, first, name))] for name in others]
    note = (
        "All tasks. Behaviour cloning: an MLP on the same demonstrations. Codebook ceiling: its chunks, encoded and "
        "decoded by the codebook before they are executed. Greedy: the likeliest token each time; sampled: as it is "
        f"evaluated everywhere. Last column: points against {_data_label(first).lower()}, paired on the same initial "
        "states, with their 95 % interval."
    )
    return Table(DATA_TITLE, ["policy", "success", "difference, points"], rows, note)


def _data_label(name: str) -> str:
    return f"{STAGE_NAMES[name]}, sampled" if name == _BASE else STAGE_NAMES[name]


def codebook_warning(run: Run) -> str:
    """The sentence that the codebook takes much of what behaviour cloning reaches, or ""."""
    cost = codebook_cost(row for name in ("reference", "ceiling") for row in run.episodes.get(name, []))
    return cost[:1].upper() + cost[1:] + "." if cost else ""


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
    if programs := sum(sums.get("programs", 0.0) for sums in run.counters.values()):
        recalled = sum(sums.get("recalled", 0.0) for sums in run.counters.values())
        note += f" Of {programs:.0f} programs {programs - recalled:.0f} were compiled, the others had been kept."
    return Table("Where the time went", ["stage", *phases, "total"], rows, note)


def timed_stages(run: Run) -> list[str]:
    """The stages with recorded time in the order in which a run reaches them, each evaluation after its stage."""
    order = [name for stage in STAGE_NAMES for name in (stage, f"evaluate {stage}")]
    return sorted(run.timing, key=lambda stage: order.index(stage) if stage in order else len(order))


def rollout_table(run: Run) -> Table | None:
    """How fast episodes went, by stage: rates, how full policy calls were, how busy the simulators."""
    rows: list[list[Cell]] = []
    for stage in timed_stages(run):
        sums = run.counters.get(stage, {})
        if not sums.get("run_s") or not sums.get("episodes"):
            continue
        simulated = sums.get("physics_s", 0.0) + sums.get("render_s", 0.0)
        rows.append([
            stage_label(stage),
            f"{sums['episodes']:.0f}",
            f"{sums.get('steps', 0.0) / sums['run_s']:,.0f}",
            f"{sums.get('decisions', 0.0) / sums['run_s']:,.0f}",
            _share_text(sums.get("decisions", 0.0), sums.get("rows", 0.0)),
            _share_text(simulated, sums.get("worker_s", 0.0)),
            _share_text(sums.get("act_s", 0.0), sums["run_s"]),
            f"{sums.get('worker_rss', 0.0) / 2**20:,.0f}",
        ])  # fmt: skip
    if not rows:
        return None
    note = (
        "rows filled: of the policy's fixed batches. simulating: share of the worker processes' time. deciding: share "
        "of the controlling process's. MB: the largest worker."
    )
    columns = ["stage", "episodes", "steps/s", "decisions/s", "rows filled", "simulating", "deciding", "MB"]
    return Table("How fast episodes went", columns, rows, note)


def _share_text(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else NONE


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
        if isinstance(row.get("task"), str) and is_number(row.get("attempts")) and is_number(row.get("successes")):
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
    makers = (
        data_table, success_table, collection_table, demos_table, timing_table, rollout_table, protocol_table
    )  # fmt: skip
    return [table for table in (maker(run) for maker in makers) if table is not None]


def _collection_row(task: str, counts: Mapping[str, int]) -> list[Cell]:
    successes, rollouts = counts["successes"], counts["rollouts"]
    share: Cell = Interval(successes, rollouts) if 0 <= successes <= rollouts else f"{successes}/{rollouts}"
    return [task, share, str(counts["kept"]), str(counts["states"]), str(counts["states_without_success"])]


def _seconds_text(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.1f}"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}" if difference else "0.0"


def _p_text(p: float) -> str:
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"

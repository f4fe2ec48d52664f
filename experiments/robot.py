"""On the arm the whole method does best, most of all where the task is long or exact: Tables 5 and 6.

Success on each of the five tabletop tasks, and of the stages of those that have several. Everything here is the
simulated arm of configs/tabletop_state.py, its objects and its scripted demonstrations: the paper's rows, of a real
robot, 20 trials per task, stand beside them for their order, not for their values. VQ-BeT has not been run here.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness import runner, variants
from harness.results import Row, episodes_of
from harness.tables import Table, difference, difference_text
from harness.variants import Variant
from ml_collections import ConfigDict

from cso_jax.statistics import wilson

_CLONING = {"rsft.enabled": False, "reference.enabled": True}
_SHORT = {
    "cube-on-cube": "Cube on Cube", "cube-in-bowl": "Cube in Bowl", "press-button": "Press Button",
    "cube-on-bottle": "Cube on Bottle", "sequential-placement": "Sequential Placement",
}  # fmt: skip
PAPER_TASKS = {
    "VQ-BeT": (45, 35, 25, 35, 5), "QueST": (45, 50, 50, 50, 10), "QueST + RIPT": (60, 60, 70, 60, 25),
    "CSO": (65, 70, 80, 60, 30),
}  # fmt: skip
PAPER_STAGES = {"VQ-BeT": (20, 25, 5), "QueST": (40, 25, 10), "QueST + RIPT": (50, 50, 25), "CSO": (60, 50, 30)}


def methods(config: ConfigDict) -> Sequence[Variant]:
    """The rows. CSO has the suite's clip range, RIPT the one of its own publication."""
    return (
        Variant("reference", "behaviour cloning", _CLONING, stage="reference"),
        Variant("ceiling", "codebook ceiling", _CLONING, stage="ceiling"),
        variants.imitation(),
        Variant("ript", "QueST + RIPT", variants.RIPT),
        Variant("rsft", "R-SFT only", {}, stage="rsft"),
        Variant("spo", "CSO", variants.SPO),
    )


def by_task(episodes: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Evaluated episodes of each task, in the order in which the tasks come."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for episode in episodes:
        found.setdefault(episode["task"], []).append(episode)
    return found


def rate_text(successes: int, trials: int) -> str | None:
    """E.g. "85.0 [64.0, 94.8]", in percent with the Wilson interval; None of no trial."""
    if not trials:
        return None
    low, high = wilson(successes, trials)
    return f"{100 * successes / trials:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def success_table(rows: Mapping[str, Sequence[Row]], chosen: Sequence[Variant], title: str) -> Table:
    """Table 5: a column per task, then all of them, n per task (seeds), and the difference from CSO."""
    episodes = {one.name: by_task(e for row in rows.get(one.name, ()) for e in episodes_of(row)) for one in chosen}
    there = dict.fromkeys(task for found in episodes.values() for task in found)
    tasks = [*(task for task in _SHORT if task in there), *(task for task in there if task not in _SHORT)]
    columns = ["", *(_SHORT.get(task, task) for task in tasks), "all", "n per task (seeds)", "against CSO"]
    lines: list[list[str | None]] = []
    for one in chosen:
        found = episodes[one.name]
        wins = {task: sum(bool(e["success"]) for e in found.get(task, ())) for task in tasks}
        trials = {task: len(found.get(task, ())) for task in tasks}
        counts = sorted({count for count in trials.values() if count})
        versus = None if one.name == "spo" or not rows.get("spo") else difference(rows[one.name], rows["spo"])
        lines.append([
            f"{one.label} (simulated)", *(rate_text(wins[task], trials[task]) for task in tasks),
            rate_text(sum(wins.values()), sum(trials.values())),
            f"{'-'.join(map(str, counts))} ({len(rows[one.name])})" if counts else None, difference_text(versus),
        ])  # fmt: skip
    lines += [_paper_line(name, numbers, tasks) for name, numbers in PAPER_TASKS.items()]
    note = (
        "success % with its Wilson 95 % interval, all seeds pooled; against CSO: points, paired on the same initial "
        "states. Paper: a real robot, 20 trials\nper task. -: not in the paper, or not run."
    )
    return Table(title, columns, lines, note)


def _paper_line(name: str, numbers: Sequence[int], tasks: Sequence[str]) -> list[str | None]:
    known = dict(zip(_SHORT, numbers, strict=True))
    mean = sum(numbers) / len(numbers)
    return [f"{name} (paper)", *(_whole(known.get(task)) for task in tasks), f"{mean:.1f}", "20", None]


def _whole(number: int | None) -> str | None:
    return None if number is None else str(number)


def stage_table(rows: Mapping[str, Sequence[Row]], chosen: Sequence[Variant], title: str) -> Table | None:
    """Table 6: of the task that has most stages, each stage where the ones before it were done; None without one."""
    found = {one.name: by_task(e for row in rows.get(one.name, ()) for e in episodes_of(row)) for one in chosen}
    lengths = {
        task: len(listed[0].get("stages", ())) for tasks in found.values() for task, listed in tasks.items() if listed
    }
    task = max(lengths, key=lambda name: lengths[name], default="")
    if lengths.get(task, 0) < 2:
        return None
    count = lengths[task]
    lines: list[list[str | None]] = []
    for one in chosen:
        episodes = found[one.name].get(task, [])
        cells: list[str | None] = []
        for stage in range(count):
            before = [e for e in episodes if all(e["stages"][:stage])]
            cells.append(rate_text(sum(bool(e["stages"][stage]) for e in before), len(before)))
        wins = sum(bool(e["success"]) for e in episodes)
        lines.append([f"{one.label} (simulated)", *cells, rate_text(wins, len(episodes)), str(len(episodes))])
    if task in _SHORT and count == 2:
        lines += [[f"{name} (paper)", *map(str, numbers), "20"] for name, numbers in PAPER_STAGES.items()]
    columns = ["", "stage 1", *(f"stage {stage + 1}, given those before" for stage in range(1, count)), "overall", "n"]
    note = "% with the Wilson 95 % interval, all seeds pooled."
    return Table(f"{title} Stages of {_SHORT.get(task, task)}.", columns, lines, note)


def finish(outcome: runner.Outcome) -> None:
    title = f"Claim: {outcome.experiment.title} Suite {outcome.options.suite.stem}, scale {outcome.options.scale}."
    tables = {
        "table_5": success_table(outcome.rows, outcome.variants, title),
        "table_6": stage_table(outcome.rows, outcome.variants, title),
    }
    for name, table in tables.items():
        if table is None:
            runner.telemetry.log(f"{name}: no task of this suite has stages")
            continue
        table.write(outcome.folder, name)
        runner.telemetry.show(table.as_text())


EXPERIMENT = runner.Experiment(
    "robot", __doc__ or "", methods, "spo", finish=finish, suite="configs/tabletop_state.py"
)  # fmt: skip

if __name__ == "__main__":
    runner.start(EXPERIMENT)

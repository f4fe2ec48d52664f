"""Measure the scripted LIBERO experts, task by task:

    python tools/libero_experts.py [--tasks=SUITE_OR_TASK,...] [--episodes=N] [--first=N] [--noise=S] [--processes=P]
                                           [--assets=DIR] [--rows=FILE.jsonl] [--out=docs/libero_experts.md]

Every episode starts from a fresh placement, the arm a little off its rest pose, after ten no-op steps and has 600 steps
of the fast physics. Placements from 100 on (the default of --first) were not looked at while the experts were written.
Rows are kept in a JSONL file: what is there already is not run again, so the command can be stopped and started again.
"""

import multiprocessing
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cso_jax import telemetry
from cso_jax.envs.libero.files import suite_of, task_sets
from cso_jax.files import append_jsonl, atomic_write_text, read_jsonl
from cso_jax.statistics import wilson

SUITES = ("libero_object", "libero_spatial", "libero_goal", "libero_10", "libero_90")
_OPTIONS = {"tasks", "episodes", "first", "noise", "processes", "assets", "rows", "out", "help"}
_HORIZON = 600
_JOINT_NOISE = 0.02


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status, 2 for a mistake in the arguments."""
    from cso_jax.config import ConfigError, split_arguments  # imports JAX, which the worker processes do without

    try:
        options, overrides = split_arguments(sys.argv[1:] if arguments is None else arguments)
        if "help" in options:
            telemetry.show(__doc__ or "")
            return 0
        if overrides or options.keys() - _OPTIONS:
            raise ConfigError(f"this command takes --{', --'.join(sorted(_OPTIONS))}")
        tasks = named_tasks(options.get("tasks", ",".join(SUITES)).split(","))
        first, processes = int(options.get("first", "100")), int(options.get("processes", "1"))
        episodes = range(first, first + int(options.get("episodes", "20")))
        noise = float(options.get("noise", "0"))
    except (ConfigError, ValueError) as error:
        telemetry.show(f"error: {error}")
        return 2
    rows_file = Path(options.get("rows", "libero_experts.jsonl"))
    known = read_jsonl(rows_file)
    jobs = missing_episodes(tasks, episodes, noise, known, options.get("assets", ""))
    for row in _measured(jobs, processes):
        append_jsonl(rows_file, [row])
        known.append(row)
    text = markdown(tasks, [row for row in known if row["noise"] == noise and row["episode"] in episodes], noise)
    atomic_write_text(options.get("out", "docs/libero_experts.md"), text)
    telemetry.show(text)
    return 0


def named_tasks(names: Iterable[str]) -> list[str]:
    """The tasks that suite and task `names` stand for. Raises ValueError for an unknown name."""
    sets = task_sets()
    chosen: list[str] = []
    for name in names:
        tasks = sets.get(name, (name,))
        for task in tasks:
            suite_of(task)
        chosen += [task for task in tasks if task not in chosen]
    return chosen


Job = tuple[str, list[int], float, str]


def missing_episodes(
    tasks: Iterable[str], episodes: range, noise: float, rows: Iterable[Mapping[str, Any]], assets: str
) -> list[Job]:
    """What is still to run: task, episode numbers, noise, assets folder."""
    done = {(row["task"], row["episode"]) for row in rows if row["noise"] == noise}
    jobs = [(task, [n for n in episodes if (task, n) not in done], noise, assets) for task in tasks]
    return [job for job in jobs if job[1]]


def _measured(jobs: list[Job], processes: int) -> Iterable[dict[str, Any]]:
    if not jobs:
        return
    # One task per process and then a new one: a compiled scene weighs 100 MB.
    context = multiprocessing.get_context("spawn")
    bar: telemetry.Progress[None]
    with (
        telemetry.progress(len(jobs), "tasks", unit="task") as bar,
        context.Pool(processes, initializer=_calm, maxtasksperchild=1) as pool,
    ):
        for rows in pool.imap_unordered(measure, jobs):
            yield from rows
            bar.update(1)


def _calm() -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


def measure(job: Job) -> list[dict[str, Any]]:
    """Run the episodes of one task; a row for each: task, episode, noise, and steps to success (None: not solved)."""
    from cso_jax.envs.libero.protocols import NO_OP, PROTOCOLS
    from cso_jax.envs.libero.simulator import Scene
    from cso_jax.experts.libero.expert import run

    task, episodes, noise, assets = job
    scene = Scene(task, {"libero": {"assets": assets, "looks": False}})
    rows = []
    for episode in episodes:
        scene.reset_placement(episode)
        scene.shake_arm(episode, _JOINT_NOISE)
        scene.hasten()
        for _ in range(PROTOCOLS["settle"].wait):
            scene.step(NO_OP)
        result = run(scene, [0, episode, *task.encode()], noise=noise, horizon=_HORIZON, extra_steps=0)
        steps = None if result.success_step is None else result.success_step + 1
        rows.append({"task": task, "episode": episode, "noise": noise, "steps": steps})
    scene.close()
    return rows


def markdown(tasks: Iterable[str], rows: list[Mapping[str, Any]], noise: float) -> str:
    """The table: per task and per suite n, successes, 95 % Wilson interval, and mean steps of the successes."""
    lines = [
        "# Scripted LIBERO experts",
        "",
        f"Success rates from fresh placements {_span(rows)}, {_HORIZON} steps each, action noise {noise:g}, each joint",
        f"of the arm Normal(0, {_JOINT_NOISE}) rad off its rest pose; 95 % Wilson intervals.",
        "Made by `python tools/libero_experts.py`.",
        "",
        "| task | n | successes | 95 % interval | mean steps |",
        "|---|---|---|---|---|",
    ]
    chosen = list(tasks)
    for suite in SUITES:
        members = [task for task in chosen if suite_of(task) == suite]
        if members:
            lines.append(_line(f"**{suite}**", [row for row in rows if row["task"] in members]))
            lines += [_line(task, [row for row in rows if row["task"] == task]) for task in members]
    return "\n".join(lines) + "\n"


def _span(rows: list[Mapping[str, Any]]) -> str:
    numbers = [row["episode"] for row in rows]
    return f"{min(numbers)} to {max(numbers)}" if numbers else "(none yet)"


def _line(name: str, rows: list[Mapping[str, Any]]) -> str:
    steps = [row["steps"] for row in rows if row["steps"] is not None]
    low, high = wilson(len(steps), len(rows))
    mean = f"{sum(steps) / len(steps):.0f}" if steps else "-"
    return f"| {name} | {len(rows)} | {len(steps)} | {low:.2f} to {high:.2f} | {mean} |"


if __name__ == "__main__":
    sys.exit(main())

"""What finished runs say: one row per variant and seed, read from their workdirs."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cso_jax import config as configs
from cso_jax.files import read_jsonl
from cso_jax.telemetry import load_account

Row = dict[str, Any]


def row_of(
    workdir: Path, stage: str, *, others: Sequence[Path] = (), upstream: Sequence[Path] = ()
) -> Row | None:  # fmt: skip
    """The row of a run whose `stage` is evaluated, None where it is not.

    `others` are workdirs that the run went through before this one (rounds); `upstream` those whose imitation policy
    it started from without an account of that in its own.

    `success` is over the evaluation episodes; `clip_fraction`, `cut_fraction` (outside the range on the side where the
    surrogate has no gradient) and `grad_norm` (before clipping) the means over the SPO iterations that made an update,
    each the mean over its updates; `rollouts` all episodes that SPO ran, `learned` those of the groups that it used,
    `updates` its gradient steps; `late_training_reward` the mean reward of its rollouts (every task alike) over the
    last quarter of the iterations; `seconds` the wall-clock time of everything that the policy took, shared stages
    included, `spo_seconds` of the SPO stage alone.
    """
    episodes = [row for row in read_jsonl(workdir / "episodes.jsonl") if row["stage"] == stage]
    if not episodes:
        return None
    parts = [*others, workdir]
    notes = _read_json(workdir / "experiment.json") or _read_json(parts[0] / "experiment.json")
    metrics = [row for part in parts for row in read_jsonl(part / "metrics.jsonl") if row["stage"] == "spo"]
    metrics = metrics if stage == "spo" or others else []
    timing = [load_account(part / "timing.json") for part in parts]
    seconds = sum(_seconds(account, None) for account in timing[:-1]) + _seconds(timing[-1], None if others else stage)
    seconds += sum(_seconds(load_account(part / "timing.json"), "imitation") for part in upstream)
    successes = sum(bool(row["success"]) for row in episodes)
    row = {
        "workdir": str(workdir),
        "stage": stage,
        "successes": successes,
        "episodes": len(episodes),
        "success": successes / len(episodes),
        "clip_fraction": mean_of(metrics, "clip_fraction"),
        "cut_fraction": mean_of(metrics, "cut_fraction"),
        "grad_norm": mean_of(metrics, "grad_norm"),
        "rollouts": _rollouts(metrics, workdir),
        "learned": sum(int(m.get("episodes") or 0) for m in metrics),
        "explained_variance": mean_of(metrics, "explained_variance"),
        "updates": sum(int(m.get("updates") or 0) for m in metrics),
        "iterations": len(metrics),
        "late_training_reward": mean_of(metrics[-math.ceil(len(metrics) / 4) :], "train_success_task_mean"),
        "seconds": seconds,
        "spo_seconds": sum(sum(account.get("spo", {}).values()) for account in timing),
        "fingerprint": _read_json(workdir / "results.json").get("config_hash"),
        "commit": notes.get("commit"),
        "jobs": notes.get("jobs"),
        "renderer": episodes[-1].get("renderer"),
        "versions": episodes[-1].get("versions"),
    }
    return row | _collection(workdir)


def _rollouts(metrics: list[dict[str, Any]], workdir: Path) -> int:
    """Episodes that SPO ran, kept or not. Runs from before that was logged always ran whole groups."""
    size = configs.from_json((workdir / "config.json").read_text()).spo.group_size
    return sum(int(m.get("episodes_run") or (m.get("groups_drawn") or 0) * size) for m in metrics)


_STAGES_UP_TO = {
    "reference": ("demos", "reference"),
    "ceiling": ("demos", "codebook", "reference"),
    "greedy": ("demos", "codebook", "imitation"),
    "imitation": ("demos", "codebook", "imitation"),
    "rsft": ("demos", "codebook", "imitation", "rsft"),
}


def _seconds(account: Mapping[str, Mapping[str, float]], stage: str | None) -> float:
    """Making the policy, up to `stage` (None: all there is), without evaluations: they cost every variant the same."""
    made = tuple(name for name in account if name != "report" and not name.startswith("evaluate"))
    return sum(sum(account.get(name, {}).values()) for name in _STAGES_UP_TO.get(stage or "", made))


def _collection(workdir: Path) -> Row:
    """What R-SFT's collection cost, mean over the tasks; empty where there was none."""
    tasks = _read_json(workdir / "rsft_summary.json")
    if not tasks:
        return {}
    return {
        f"{name}_per_task": sum(task[name] for task in tasks.values()) / len(tasks)
        for name in ("rollouts", "states", "kept")
    }


def mean_of(rows: Iterable[Mapping[str, Any]], name: str) -> float | None:
    """The mean of a number over the rows that have it, None where none has."""
    values = [row[name] for row in rows if isinstance(row.get(name), int | float) and math.isfinite(row[name])]
    return sum(values) / len(values) if values else None


def episodes_of(row: Row) -> list[dict[str, Any]]:
    """The evaluated episodes behind a row."""
    return [e for e in read_jsonl(Path(row["workdir"]) / "episodes.jsonl") if e["stage"] == row["stage"]]


def outcomes_of(row: Row) -> dict[str, str]:
    """Per task, a 1 for each success and a 0 for each failure, in the order of the initial states."""
    tasks: dict[str, list[tuple[int, str, bool]]] = {}
    for episode in episodes_of(row):
        name = str(episode["init"])
        tasks.setdefault(episode["task"], []).append((len(name), name, bool(episode["success"])))
    return {task: "".join("01"[won] for *_, won in sorted(found)) for task, found in sorted(tasks.items())}


def series_of(row: Row, name: str) -> tuple[list[int], list[float]]:
    """Iterations and values of an SPO metric of a run."""
    found = [
        (m["step"], m[name])
        for m in read_jsonl(Path(row["workdir"]) / "metrics.jsonl")
        if m["stage"] == "spo" and isinstance(m.get(name), int | float)
    ]
    return [step for step, _ in found], [value for _, value in found]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}

"""What a run directory holds, as the report reads it."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cso_jax.files import PathLike, read_jsonl
from cso_jax.report.table import Interval
from cso_jax.run import COUNTERS
from cso_jax.stages import table
from cso_jax.telemetry import load_account

STAGE_NAMES = table.labels() | {"report": "Report"}


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
    counters: dict[str, dict[str, float]]
    codebook_counts: list[int]
    rsft_summary: dict[str, dict[str, Any]]
    videos: list[Path]
    problems: list[str] = field(default_factory=list)

    @property
    def stages(self) -> list[str]:
        """The steps of the cascade that have results, in order."""
        return [stage for stage in table.STEPS if self.results.get(stage)]

    @property
    def references(self) -> list[str]:
        """What was evaluated beside the steps of the cascade and has results, in order."""
        return [name for name in table.EVALUATIONS if name not in table.STEPS and self.results.get(name)]

    def overall(self, stage: str) -> Interval:
        """All tasks of an evaluation together."""
        cells = self.results[stage].values()
        return Interval(sum(cell.successes for cell in cells), sum(cell.episodes for cell in cells))

    def series(self, stage: str, name: str) -> tuple[list[float], list[float]]:
        """Returns steps and values of one metric, without the rows where it is missing or was not finite."""
        pairs = [
            (float(row["step"]), float(row[name]))
            for row in self.metrics.get(stage, [])
            if is_number(row.get(name)) and is_number(row.get("step"))
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
        timing=_account(folder / "timing.json"),
        counters=_account(folder / COUNTERS),
        codebook_counts=[int(count) for count in usage] if isinstance(usage, list) else [],
        rsft_summary={
            task: row
            for task, row in _read_json(folder / "rsft_summary.json", problems).items()
            if isinstance(row, dict)
        },
        videos=sorted((folder / "videos").glob("*.gif")),
        problems=problems,
    )


def _account(path: Path) -> dict[str, dict[str, float]]:
    return {
        entry: {name: float(value) for name, value in sums.items() if is_number(value)}
        for entry, sums in load_account(path).items()
        if isinstance(sums, dict)
    }


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number, as a row of metrics may hold; a boolean is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _results(raw: Mapping[str, Any]) -> dict[str, dict[str, Interval]]:
    results: dict[str, dict[str, Interval]] = {}
    for stage in table.EVALUATIONS:
        tasks = raw.get(stage)
        for task, cell in tasks.items() if isinstance(tasks, dict) else ():
            if isinstance(cell, dict) and is_number(cell.get("successes")) and is_number(cell.get("episodes")):
                results.setdefault(stage, {})[task] = Interval(int(cell["successes"]), int(cell["episodes"]))
    return results


def _results_of_episodes(episodes: Mapping[str, list[dict[str, Any]]]) -> dict[str, dict[str, Interval]]:
    results: dict[str, dict[str, Interval]] = {}
    for stage in table.EVALUATIONS:
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

"""The evaluated episodes of a run and what is counted from them: `episodes.jsonl` and `results.json`."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from cso_jax import config_values as configs
from cso_jax.files import atomic_write_text, read_jsonl

ROWS = "episodes.jsonl"


def write_results(config: ConfigDict, workdir: Path) -> None:
    """Sum `episodes.jsonl` into `results.json`: `{stage: {task: {"successes", "episodes"}}}`, and the config's hash."""
    results: dict = {"config_hash": configs.fingerprint(config)}
    for row in read_jsonl(workdir / ROWS):
        cell = results.setdefault(row["stage"], {}).setdefault(row["task"], {"successes": 0, "episodes": 0})
        cell["successes"] += bool(row["success"])
        cell["episodes"] += 1
    atomic_write_text(workdir / "results.json", json.dumps(results, indent=2))

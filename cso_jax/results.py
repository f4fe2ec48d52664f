"""The evaluated episodes of a run and what is counted from them: `episodes.jsonl` and `results.json`."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cso_jax import config_values as configs
from cso_jax.files import atomic_write_text, read_jsonl
from cso_jax.statistics import paired_comparison

ROWS = "episodes.jsonl"
_COSTLY = 0.1  # of the success rate: what a codebook may take before a run says so


def write_results(config: ConfigDict, workdir: Path) -> None:
    """Sum `episodes.jsonl` into `results.json`: `{name: {task: {"successes", "episodes"}}}`, and the config's hash."""
    results: dict = {"config_hash": configs.fingerprint(config)}
    for row in read_jsonl(workdir / ROWS):
        cell = results.setdefault(row["stage"], {}).setdefault(row["task"], {"successes": 0, "episodes": 0})
        cell["successes"] += bool(row["success"])
        cell["episodes"] += 1
    atomic_write_text(workdir / "results.json", json.dumps(results, indent=2))


def codebook_cost(rows: Iterable[Mapping[str, Any]]) -> str:
    """A sentence where the codebook demonstrably takes more than 10 points of what behaviour cloning reaches, else "".

    `rows` are those of `episodes.jsonl`; the two are compared on the episodes that both have.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = {"reference": [], "ceiling": []}
    for row in rows:
        by_name.get(row["stage"], []).append(row)
    found = paired_comparison(by_name["reference"], by_name["ceiling"])
    if found.n == 0 or found.difference >= -_COSTLY or found.high >= 0:
        return ""
    return (
        f"the codebook lets through {100 * found.success_b:.1f} % where behaviour cloning alone reaches "
        f"{100 * found.success_a:.1f} %: {100 * found.difference:+.1f} points (95 % interval {100 * found.low:+.1f} to "
        f"{100 * found.high:+.1f}, n = {found.n} paired episodes). Skills can hardly do better than that: try "
        "config.autoencoder.network=residual, or raise config.codebook.steps or config.autoencoder.width"
    )

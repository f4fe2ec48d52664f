"""The stages of the cascade as one table: what each starts from, what it reads of the config, what it leaves behind.

A stage is valid for its inputs: what may be kept, what must be made again and what experiments may share is worked out
from this table alone (`stages/provenance.py`, `experiments/workdirs.py`).
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cso_jax.files import step_folders


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage.

    `needs`: stages whose outputs it starts from. `reads`: sections ("rsft") or single keys ("demos.noise") of the
    config. `outputs`: files and folders in the workdir; of a folder of checkpoints only the steps count. `metrics`:
    the names under which it logs.
    """

    name: str
    label: str
    needs: tuple[str, ...]
    reads: tuple[str, ...]
    outputs: tuple[str, ...]
    metrics: tuple[str, ...] = ()


STAGES = {
    stage.name: stage
    for stage in (
        Stage("demos", "demonstrations", (), ("demos.per_task", "demos.noise", "demos.extra_steps"), ("demos",)),
        # Its checkpoint holds the untrained encoder and prior too.
        Stage(
            "codebook", "codebook", ("demos",), ("demos", "autoencoder", "encoder", "prior", "codebook"),
            ("checkpoints/codebook", "codebook_usage.json"), ("codebook",),
        ),
        Stage("imitation", "imitation", ("demos", "codebook"), ("demos", "encoder", "prior", "imitation"),
              ("checkpoints/imitation",), ("imitation",)),
        Stage(
            "rsft", "R-SFT", ("imitation",), ("rsft", "execution_horizon", "rollout"),
            ("checkpoints/rsft", "rsft", "rsft_summary.json"), ("rsft", "rsft_collect"),
        ),
        Stage("spo", "SPO", ("rsft",), ("spo", "sampling", "execution_horizon", "rollout"), ("checkpoints/spo",),
              ("spo",)),
    )
}  # fmt: skip
EVALUATED = ("imitation", "rsft", "spo")
EVALUATION_READS = ("sampling", "execution_horizon", "evaluation", "rollout")

_NAMED = {entry.split(".")[0] for stage in STAGES.values() for entry in stage.reads} | set(EVALUATION_READS)


def is_common(key: str) -> bool:
    """Whether a config key bears on every stage: seed, data, env, and whatever no stage names."""
    return key.split(".")[0] not in _NAMED


def reads(entries: Iterable[str], key: str) -> bool:
    """Whether one of `entries` (sections or keys) covers the config key."""
    return any(key == entry or key.startswith(entry + ".") for entry in entries)


def needs(name: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The stages that a stage starts from under a config."""
    if name == "spo" and not config["rsft"]["enabled"]:
        return ("imitation",)
    if name == "rsft" and config["rsft"]["demo_fraction"]:
        return ("imitation", "demos", "codebook")
    return STAGES[name].needs


def depends(name: str, key: str, config: Mapping[str, Any]) -> bool:
    """Whether the outcome of a stage depends on a config key, directly or through what it needs."""
    if is_common(key) or reads(STAGES[name].reads, key):
        return True
    return any(depends(need, key, config) for need in needs(name, config))


def found_outputs(name: str, workdir: Path) -> list[Path]:
    """What a stage has left in the workdir; empty while it has not begun."""
    places = [workdir / output for output in STAGES[name].outputs]
    return [place for place in places if (_holds_anything(place) if place.is_dir() else place.exists())]


def _holds_anything(folder: Path) -> bool:
    if folder.parent.name == "checkpoints":
        return bool(step_folders(folder))
    return any(not path.name.startswith(".") for path in folder.iterdir())

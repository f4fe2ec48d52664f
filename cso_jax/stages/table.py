"""The stages of the cascade as one table: what each does, starts from, reads of the config, and leaves behind.

A stage is valid for its inputs: what may be kept, what must be made again and what experiments may share is worked out
from this table alone (`stages/provenance.py`, `experiments/harness/workdirs.py`). So are the order of the cascade, what
is evaluated, and how the report names and draws a stage.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cso_jax import policies
from cso_jax.files import step_folders
from cso_jax.run import Run
from cso_jax.stages import codebook, demos, imitation, rsft
from cso_jax.stages.spo import stage as spo


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage.

    `function(run)` does what the workdir lacks of it. `problems(config)` is what does not go together in the values
    that it reads, one line each. `needs(config)`: stages whose outputs it starts from. `reads`: sections ("rsft") or
    single keys ("demos.noise") of the config. `outputs`: files and folders in the workdir; of a folder of checkpoints
    only the steps count. `metrics`: the names under which it logs, with their labels. `evaluated`: whether it leaves a
    policy that is evaluated. `states`: where its range of train states begins, None where it draws none. `colour` and
    `marker` in plots: colour is never the only difference.
    """

    name: str
    label: str
    function: Callable[[Run], None]
    problems: Callable[[ConfigDict], list[str]]
    needs: Callable[[Mapping[str, Any]], tuple[str, ...]]
    reads: tuple[str, ...]
    outputs: tuple[str, ...]
    metrics: Mapping[str, str]
    evaluated: bool = False
    states: int | None = None
    colour: str = "grey"
    marker: str = "o"


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "demos", "demonstrations", demos.run_stage, demos.problems, lambda config: (),
            ("demos.per_task", "demos.noise", "demos.extra_steps"), ("demos",), {"demos": "Demonstrations"}, states=0,
        ),
        # Its checkpoint holds the untrained encoder and prior too.
        Stage(
            "codebook", "codebook", codebook.run_stage, codebook.problems, lambda config: ("demos",),
            ("policy", "demos", "autoencoder", "encoder", "prior", "codebook"),
            ("checkpoints/codebook", "codebook_usage.json"), {"codebook": "Codebook"},
        ),
        Stage(
            "imitation", "imitation", imitation.run_stage, imitation.problems, lambda config: ("demos", "codebook"),
            ("policy", "demos", "encoder", "prior", "imitation"), ("checkpoints/imitation",),
            {"imitation": "Imitation"}, evaluated=True,
        ),
        Stage(
            "rsft", "R-SFT", rsft.run_stage, rsft.problems, rsft.needs, ("rsft", "execution_horizon", "rollout"),
            ("checkpoints/rsft", "rsft", "rsft_summary.json"), {"rsft": "R-SFT", "rsft_collect": "R-SFT rollouts"},
            evaluated=True, states=1_000_000, colour="orange", marker="s",
        ),
        Stage(
            "spo", "SPO", spo.run_stage, spo.problems, lambda config: (spo.start_from(config),),
            ("spo", "sampling", "execution_horizon", "rollout"), ("checkpoints/spo",), {"spo": "SPO"},
            evaluated=True, states=2_000_000, colour="blue", marker="D",
        ),
    )
}  # fmt: skip
EVALUATED = tuple(stage.name for stage in STAGES.values() if stage.evaluated)
EVALUATION_READS = ("sampling", "execution_horizon", "evaluation", "rollout")

_NAMED = {entry.split(".")[0] for stage in STAGES.values() for entry in stage.reads} | set(EVALUATION_READS)


def of_policy(config: Mapping[str, Any]) -> list[Stage]:
    """The stages that the config's kind of policy has, in order."""
    return [STAGES[name] for name in policies.stages_of(config)]


def enabled(config: Mapping[str, Any]) -> list[Stage]:
    """The stages that a config runs, in order."""
    return [stage for stage in of_policy(config) if config.get(stage.name, {}).get("enabled", True)]


def state_ranges() -> dict[str, int]:
    """Where the train states of each stage begin that draws any."""
    return {stage.name: stage.states for stage in STAGES.values() if stage.states is not None}


def labels() -> dict[str, str]:
    """What the names in metrics and evaluations are called, in the order in which a run reaches them."""
    return {name: label for stage in STAGES.values() for name, label in stage.metrics.items()}


def is_common(key: str) -> bool:
    """Whether a config key bears on every stage: seed, data, env, and whatever no stage names."""
    return key.split(".")[0] not in _NAMED


def reads(entries: Iterable[str], key: str) -> bool:
    """Whether one of `entries` (sections or keys) covers the config key."""
    return any(key == entry or key.startswith(entry + ".") for entry in entries)


def needs(name: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The stages that a stage starts from under a config, of those that its policy has."""
    has = policies.stages_of(config)
    return tuple(need for need in STAGES[name].needs(config) if need in has)


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

"""The stages of the cascade as one table: what each does, starts from, reads of the config, and leaves behind.

A second table says what is evaluated: the steps of the cascade, and the references beside them. A stage is valid for
its inputs: what may be kept, what must be made again and what experiments may share is worked out from these tables
alone (`stages/provenance.py`, `experiments/harness/workdirs.py`). So are the order of the cascade, and how the report
names and draws what was evaluated.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cso_jax import policies
from cso_jax.files import step_folders
from cso_jax.policies.agent import Agent
from cso_jax.run import Run
from cso_jax.stages import codebook, demos, imitation, reference, rsft
from cso_jax.stages.spo import stage as spo


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage.

    `function(run)` does what the workdir lacks of it. `problems(config)` is what does not go together in the values
    that it reads, one line each. `needs(config)`: stages whose outputs it starts from. `reads`: sections ("rsft") or
    single keys ("demos.noise") of the config. `outputs`: files and folders in the workdir; of a folder of checkpoints
    only the steps count. `metrics`: the names under which it logs, with their labels. `states`: where its range of
    train states begins, None where it draws none.
    """

    name: str
    label: str
    function: Callable[[Run], None]
    problems: Callable[[ConfigDict], list[str]]
    needs: Callable[[Mapping[str, Any]], tuple[str, ...]]
    reads: tuple[str, ...]
    outputs: tuple[str, ...]
    metrics: Mapping[str, str]
    states: int | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One way to act that is evaluated, and the name of its rows.

    `of`: the stages whose outcome acts, in the order of the cascade; it runs after the last of them, and its rows hold
    while all of them do. `agent(run)` is who acts. `reads`: as of a stage. `step`: whether it is a step of the
    cascade, or a reference, which says what a step's success is worth. `measure(run)`: numbers that are logged under
    its name before its episodes. `colour` and `marker` in plots: colour is never the only difference.
    """

    name: str
    label: str
    of: tuple[str, ...]
    agent: Callable[[Run], Agent]
    reads: tuple[str, ...]
    step: bool = False
    measure: Callable[[Run], Mapping[str, float]] | None = None
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
            "reference", "behaviour cloning", reference.run_stage, reference.problems, lambda config: ("demos",),
            ("reference", "demos", "policy", "autoencoder.chunk_length", "encoder.task_embedding",
             "encoder.image_width", "encoder.norm", "encoder.trunk", "imitation.validation_fraction",
             "execution_horizon"),
            ("checkpoints/reference",), {"reference": "Behaviour cloning"},
        ),
        Stage(
            "imitation", "imitation", imitation.run_stage, imitation.problems, lambda config: ("demos", "codebook"),
            ("policy", "demos", "encoder", "prior", "imitation", "execution_horizon"),
            ("checkpoints/imitation",), {"imitation": "Imitation"},
        ),
        Stage(
            "rsft", "R-SFT", rsft.run_stage, rsft.problems, rsft.needs, ("rsft", "execution_horizon", "rollout"),
            ("checkpoints/rsft", "rsft", "rsft_summary.json"), {"rsft": "R-SFT", "rsft_collect": "R-SFT rollouts"},
            states=1_000_000,
        ),
        Stage(
            "spo", "SPO", spo.run_stage, spo.problems, lambda config: (spo.start_from(config),),
            ("spo", "sampling", "execution_horizon", "rollout"), ("checkpoints/spo",), {"spo": "SPO"},
            states=2_000_000,
        ),
    )
}  # fmt: skip

# `rollout`: rounding may depend on the batch of the policy call.
_ROLLOUTS = ("execution_horizon", "evaluation", "rollout")
_AS_TRAINED = ("sampling", *_ROLLOUTS)
_REFERENCE = ("reference.episodes_per_task", *_ROLLOUTS)


def _policy_of(stage: str) -> Callable[[Run], Agent]:
    return lambda run: run.agent(run.variables(stage))


EVALUATIONS = {
    evaluation.name: evaluation
    for evaluation in (
        Evaluation(
            "reference", "Behaviour cloning", ("reference",), reference.agent, _REFERENCE, colour="green", marker="^",
        ),
        Evaluation(
            "ceiling", "Codebook ceiling", ("codebook", "reference"), reference.ceiling_agent, _REFERENCE,
            measure=reference.chunk_errors, colour="red", marker="v",
        ),
        Evaluation("imitation", "Imitation", ("imitation",), _policy_of("imitation"), _AS_TRAINED, step=True),
        Evaluation(
            "greedy", "Imitation, greedy", ("imitation",), reference.greedy_agent, _REFERENCE, marker="x",
        ),
        Evaluation(
            "rsft", "R-SFT", ("rsft",), _policy_of("rsft"), _AS_TRAINED, step=True, colour="orange", marker="s",
        ),
        Evaluation("spo", "SPO", ("spo",), _policy_of("spo"), _AS_TRAINED, step=True, colour="blue", marker="D"),
    )
}  # fmt: skip
STEPS = tuple(evaluation.name for evaluation in EVALUATIONS.values() if evaluation.step)

_READS = [*(stage.reads for stage in STAGES.values()), *(one.reads for one in EVALUATIONS.values())]
_NAMED = {entry.split(".")[0] for entries in _READS for entry in entries}


def of_policy(config: Mapping[str, Any]) -> list[Stage]:
    """The stages that the config's kind of policy has, in order."""
    return [STAGES[name] for name in policies.stages_of(config)]


def enabled(config: Mapping[str, Any]) -> list[Stage]:
    """The stages that a config runs, in order."""
    return [stage for stage in of_policy(config) if config.get(stage.name, {}).get("enabled", True)]


def evaluations(config: Mapping[str, Any], *, after: str | None = None) -> list[Evaluation]:
    """What a config evaluates, in order; only what follows the stage `after` where one is named."""
    stages = {stage.name for stage in enabled(config)}
    return [
        one
        for one in EVALUATIONS.values()
        if stages.issuperset(one.of) and (one.step or reference.STAGE in stages) and after in (None, one.of[-1])
    ]


def evaluations_of(stage: str) -> list[str]:
    """The names of the evaluations in which what a stage left acts."""
    return [one.name for one in EVALUATIONS.values() if stage in one.of]


def episodes_per_task(name: str, config: ConfigDict) -> int:
    """How many episodes of each task an evaluation has."""
    own = 0 if EVALUATIONS[name].step else config.reference.episodes_per_task
    return int(own or config.evaluation.episodes_per_task)


def state_ranges() -> dict[str, int]:
    """Where the train states of each stage begin that draws any."""
    return {stage.name: stage.states for stage in STAGES.values() if stage.states is not None}


def labels() -> dict[str, str]:
    """What the names in metrics and evaluations are called, in the order in which a run reaches them."""
    found: dict[str, str] = {}
    for stage in STAGES.values():
        found |= stage.metrics
        found |= {one.name: one.label for one in EVALUATIONS.values() if one.of[-1] == stage.name}
    return found


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

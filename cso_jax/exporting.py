"""From a finished stage of a run to an artifact, as `cso_jax.runtime.artifact` reads it."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from cso_jax import config_values, envs, versions
from cso_jax.files import atomic_write_text, read_jsonl, step_folders
from cso_jax.policies.agent import Agent
from cso_jax.results import ROWS
from cso_jax.run import Run, RunError
from cso_jax.runtime import artifact, program
from cso_jax.runtime.manifest import Action, Entry, Frame, Limits, Manifest, Task
from cso_jax.stages import table
from cso_jax.statistics import wilson

EXPORTED = ("reference", *table.STEPS)
"""The evaluations whose policy can be exported: those of one stage, as it draws in evaluation."""


class Choice(NamedTuple):
    """What of a run is exported, and how it will act.

    `execution_horizon` and `chunk_length`: actions that are executed per decision, and that a decision answers (0: the
    run's, and twice that as far as the chunk goes). `temperature` and `top_k`: None for the run's.
    """

    stage: str
    name: str
    execution_horizon: int = 0
    chunk_length: int = 0
    temperature: float | None = None
    top_k: int | None = None


def export(run: Run, choice: Choice, out: Path) -> Manifest:
    """Write the artifact; returns its manifest. Raises RunError where `out` exists or the choice does not fit."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists; choose a new folder, or remove it first")
    agent = table.EVALUATIONS[choice.stage].agent(run)
    parameters = {name: np.asarray(value) for name, value in program.flatten(agent.variables).items()}
    manifest = manifest_of(run, agent, choice, sum(value.size for value in parameters.values()))
    act = program.make_act(agent.policy, agent.variables, manifest)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the finished folder gets its name in one step.
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent.absolute()))
    try:
        made.chmod(0o755)
        atomic_write_text(made / artifact.CONFIG, config_values.to_json(run.config))
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(made / "parameters", jax.tree.map(np.asarray, agent.variables))
        atomic_write_text(made / artifact.CARD, card(manifest))
        artifact.write_program(made, program.serialise(act, parameters, manifest))
        finished = artifact.write(made, manifest, parameters)
        if out.exists():
            out.rmdir()  # empty: checked above
        made.rename(out)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return finished


def manifest_of(run: Run, agent: Agent, choice: Choice, size: int) -> Manifest:
    """What the artifact says about itself, without the hashes of its files; `size` is its number of parameters."""
    config, interface = run.config, envs.robot_interface(run.settings)
    longest = agent.policy.wants.chunk_length
    executed = choice.execution_horizon or config.execution_horizon
    length = choice.chunk_length or min(longest, 2 * executed)
    if not executed <= length <= longest:
        raise RunError(
            f"--horizon={executed} and --chunk={length}: a chunk of this policy has {longest} actions; of those "
            "that are answered (--chunk) the first --horizon are executed"
        )
    temperature = agent.sampling.temperature if choice.temperature is None else choice.temperature
    top_k = agent.sampling.top_k if choice.top_k is None else choice.top_k
    as_evaluated = (temperature, top_k, executed) == (*agent.sampling, config.execution_horizon)
    return Manifest(
        name=choice.name,
        policy="bc" if choice.stage == "reference" else config.policy.name,
        stage=choice.stage,
        history=agent.policy.wants.history,
        observation=tuple(_entries(run, interface.orientation)),
        action=Action(
            dim=run.spec.action_dim,
            chunk_length=length,
            execution_horizon=executed,
            names=interface.names,
            low=interface.low,
            high=interface.high,
            units=interface.units,
            rate_hz=interface.rate_hz,
            scaled=interface.scaled,
            frame=None if agent.frame is None else Frame(**vars(agent.frame)),
        ),
        sampling={"temperature": float(temperature), "top_k": float(top_k)},
        tasks=tuple(Task(task, envs.sentence(run.settings, task)) for task in run.tasks),
        limits=None if interface.limits is None else Limits(**vars(interface.limits)),
        provenance={
            "benchmark": config.env.name,
            "config": config_values.fingerprint(config),
            "seed": config.seed,
            "parameters": size,
            "commit": versions.commit(),
            "versions": versions.versions(),
            "success": success_of(run.workdir, choice.stage) if as_evaluated else None,
            "reference": success_of(run.workdir, "reference"),
        },
        files={},
    )


def _entries(run: Run, orientation: str) -> list[Entry]:
    lowdim = [Entry(name, "lowdim", (size,), "float32") for name, size in sorted(run.spec.lowdim.items())]
    return lowdim + [Entry(name, "image", shape, "uint8", orientation) for name, shape in run.spec.images.items()]


def success_of(workdir: Path, stage: str) -> dict[str, Any] | None:
    """What the run's own evaluation of a stage found, `{"rate", "low", "high", "n", "tasks"}`; None where it has none.

    The interval is Wilson's at 95 %; `tasks` maps names to (successes, episodes).
    """
    rows = [row for row in read_jsonl(workdir / ROWS) if row["stage"] == stage]
    if not rows:
        return None
    tasks: dict[str, list[int]] = {}
    for row in rows:
        cell = tasks.setdefault(row["task"], [0, 0])
        cell[0] += bool(row["success"])
        cell[1] += 1
    wins = sum(cell[0] for cell in tasks.values())
    low, high = wilson(wins, len(rows))
    return {"rate": wins / len(rows), "low": low, "high": high, "n": len(rows), "tasks": tasks}


def card(manifest: Manifest) -> str:
    """The model card, in Markdown."""
    found, action = manifest.provenance, manifest.action
    success, reference = found["success"], found["reference"]
    entries = "\n".join(
        f"| `{entry.name}` | {entry.kind} | {'x'.join(map(str, entry.shape))} {entry.dtype} | "
        f"{entry.orientation if entry.kind == 'image' else ''} |"
        for entry in manifest.observation
    )
    tasks = "\n".join(f"| {task.name} | {task.sentence} | {_cell(success, task.name)} |" for task in manifest.tasks)
    rate = "an unknown rate" if action.rate_hz is None else f"{action.rate_hz:g} Hz"
    made_with = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"""# {manifest.name}

A policy of kind `{manifest.policy}` after the stage `{manifest.stage}`, {found["parameters"]:,} parameters, trained and
evaluated in simulation ({found["benchmark"]}). It has not been tried on a robot by whoever exported it, unless it says
so here.

Success of the run's own evaluation, held-out initial states: **{_rate(success)}**. Plain behaviour cloning on the same
demonstrations: {_rate(reference)}.

| task | sentence | successes |
|---|---|---|
{tasks}

## What it reads and writes

| observation | kind | shape, without batch | images |
|---|---|---|---|
{entries}

Actions `[{action.chunk_length}, {action.dim}]` at {rate}: {", ".join(action.names)}. {action.units}. The first
{action.execution_horizon} are meant to be executed before the next decision; the others bridge latency. It draws with
temperature {manifest.sampling["temperature"]:g} and top-k {manifest.sampling["top_k"]:g}.

## Use

    python -m cso_jax.serve FOLDER

serves it over websockets. `manifest.json` says all of this to programs.

Made from config {found["config"]}, seed {found["seed"]}, commit {found["commit"] or "unknown"}, with {made_with}.
"""


def _rate(success: Mapping[str, Any] | None) -> str:
    if success is None:
        return "not measured"
    low, high = 100 * success["low"], 100 * success["high"]
    return f"{100 * success['rate']:.1f} % (95 % interval {low:.1f} to {high:.1f}, n = {success['n']})"


def _cell(success: Mapping[str, Any] | None, task: str) -> str:
    if success is None or task not in success["tasks"]:
        return "not measured"
    wins, episodes = success["tasks"][task]
    return f"{wins} of {episodes}"


def exportable(config: ConfigDict, workdir: Path) -> list[str]:
    """The stages of a workdir that can be exported, in the order of the cascade."""
    present = [name for name in EXPORTED if step_folders(workdir / "checkpoints" / name)]
    return [name for name in present if name != "reference" or config.reference.enabled]

"""Workdirs of experiments: which stages two runs share, starting one run from another's stages, what a run has left.

A variant's workdir starts with those stages of its seed's base run that its config leaves as they were, and the
ordinary cascade then runs what is missing. It is put together in a folder beside it and renamed, so a killed process
leaves none or a whole one.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cso_jax import config as configs
from cso_jax import envs
from cso_jax.checkpoints import Checkpoints
from cso_jax.files import append_jsonl, atomic_write_text, read_jsonl
from cso_jax.stages import provenance, table
from cso_jax.telemetry import load_account


def shared_stages(base: ConfigDict, config: ConfigDict) -> list[str]:
    """The stages (and evaluations) whose outcome is the same under both configs, in the order of the cascade."""
    different = configs.differences(json.loads(configs.to_json(base)), config)
    before = {one.name for one in table.evaluations(base)}
    shared: list[str] = []
    for stage in table.enabled(config):
        if stage.name == "spo" or any(table.depends(stage.name, key, config) for key in different):
            continue
        shared.append(stage.name)
        for one in table.evaluations(config, after=stage.name):
            same = one.name in before and set(one.of) <= set(shared)
            if same and not any(table.reads(one.reads, key) for key in different):
                shared.append(f"evaluate {one.name}")
    return shared


def prepare(workdir: Path, base: Path, config: ConfigDict, notes: dict[str, Any]) -> None:
    """Start `workdir` from what the finished run `base` shares with `config`; nothing where it has begun already."""
    if workdir.exists():
        return
    before = configs.from_json((base / "config.json").read_text())
    shared = shared_stages(before, config)
    with _assembled(workdir) as draft:
        _take_stages(base, draft, [stage for stage in shared if stage in table.STAGES])
        evaluated = [stage.removeprefix("evaluate ") for stage in shared if stage.startswith("evaluate ")]
        append_jsonl(
            draft / "episodes.jsonl", [r for r in read_jsonl(base / "episodes.jsonl") if r["stage"] in evaluated]
        )
        _copy_account(base, draft, shared)
        atomic_write_text(draft / "experiment.json", json.dumps(notes | {"shared": shared}, indent=1))


def prepare_round(workdir: Path, base: Path, before: Path | None, notes: dict[str, Any]) -> None:
    """Start a round of an iterative run: the base's codebook, and as its imitation policy what `before` ended with.

    Without `before` the imitation policy is the base's.
    """
    if workdir.exists():
        return
    with _assembled(workdir) as draft:
        _take_stages(base, draft, ["demos", "codebook", "imitation"])
        if before is not None:
            shutil.rmtree(draft / "checkpoints" / "imitation")
            found = Checkpoints(before / "checkpoints" / "spo").restore_latest(None)
            if found is None or not found[2].get("final"):
                raise configs.ConfigError(f"{before} has no finished SPO stage to go on from")
            step, tree, _ = found
            kept = {part: tree[part] for part in ("step", "trainable", "fixed")}
            checkpoints = Checkpoints(draft / "checkpoints" / "imitation")
            checkpoints.save(max(step, 1), kept, {"stage": "imitation", "final": True})
            checkpoints.close()
        atomic_write_text(draft / "experiment.json", json.dumps(notes, indent=1))


@contextlib.contextmanager
def _assembled(workdir: Path) -> Iterator[Path]:
    draft = workdir.with_name(workdir.name + ".preparing")
    shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
    draft.mkdir(parents=True)
    yield draft
    os.replace(draft, workdir)


def _take_stages(base: Path, draft: Path, stages: Sequence[str]) -> None:
    if (base / provenance.FILES).exists():
        shutil.copy2(base / provenance.FILES, draft / provenance.FILES)
    for stage in stages:
        beside = ("task_embedding.npz",) if stage == "imitation" else ()
        for name in (*table.STAGES[stage].outputs, *beside):
            source = base / name
            if source.is_dir():
                shutil.copytree(source, draft / name, copy_function=_link)
            elif source.exists():
                shutil.copy2(source, draft / name)


def _link(source: str, target: str) -> str:
    """A hard link: stage outputs are replaced or removed, never written into. A copy where there are no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _copy_account(base: Path, draft: Path, shared: Sequence[str]) -> None:
    logged = {name for stage in shared if stage in table.STAGES for name in (stage, *table.STAGES[stage].metrics)}
    logged |= {stage.removeprefix("evaluate ") for stage in shared if stage not in table.STAGES}
    append_jsonl(draft / "metrics.jsonl", [r for r in read_jsonl(base / "metrics.jsonl") if r["stage"] in logged])
    timing = load_account(base / "timing.json")
    kept = {stage: phases for stage, phases in timing.items() if stage in shared}
    atomic_write_text(draft / "timing.json", json.dumps(kept, indent=1))
    records = base / provenance.RECORDS
    if records.exists():
        made = {stage: record for stage, record in json.loads(records.read_text()).items() if stage in shared}
        atomic_write_text(draft / provenance.RECORDS, json.dumps(made, indent=1))


@contextlib.contextmanager
def exclusive(workdir: Path) -> Iterator[None]:
    """Hold a workdir among experiment processes; waits for the one that has it (it may be ending after a kill)."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    with open(workdir.with_name(f".{workdir.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def complete(workdir: Path, config: ConfigDict, stages: Sequence[str]) -> bool:
    """Whether a run of exactly this config holds every episode of these evaluations."""
    results = workdir / "results.json"
    if not results.exists() or not (workdir / "config.json").exists():
        return False
    stored = configs.from_json((workdir / "config.json").read_text())
    if configs.fingerprint(stored) != configs.fingerprint(config):
        return False
    cells = json.loads(results.read_text())
    tasks = envs.task_names(config.env.to_dict())
    return all(
        cells.get(stage, {}).get(task, {}).get("episodes") == table.episodes_per_task(stage, config)
        for stage in stages
        for task in tasks
    )


def folder(parent: Path, name: str, config: ConfigDict) -> Path:
    """Where runs of this config lie, whatever the seed: the name is for people, the fingerprint finds it again.

    The folder is made, so that two experiments that are planned at the same time find the same one.
    """
    any_seed = configs.from_json(configs.to_json(config)).copy_and_resolve_references()
    any_seed.unlock()
    any_seed.seed = 0
    mark = configs.fingerprint(any_seed)
    with exclusive(parent / "names"):
        found = sorted(path for path in parent.glob(f"*-{mark}") if path.is_dir())
        place = found[0] if found else parent / f"{name}-{mark}"
        place.mkdir(exist_ok=True)
    return place

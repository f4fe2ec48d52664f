"""A stage is valid for its inputs: what each was made from is recorded, and what no longer holds is set aside.

`stages.json` in the workdir: `{stage: {"from": {needed stage: its mark}, "made": mark of what it left}}`. A mark is a
hash of the policy's arrays, so a stage that is made again and comes out the same leaves everything after it valid. What
is set aside is moved to `superseded/<stage>-<time>/`, never deleted.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cso_jax import config_values as configs
from cso_jax import telemetry
from cso_jax.checkpoints import Checkpoints
from cso_jax.data.libero import official
from cso_jax.envs import task_names
from cso_jax.files import append_jsonl, atomic_write_text, read_jsonl, rewrite_jsonl
from cso_jax.results import ROWS, write_results
from cso_jax.run import COUNTERS
from cso_jax.stages.demos import file_of
from cso_jax.stages.table import EVALUATIONS, STAGES, evaluations_of, found_outputs, is_common, needs, reads

RECORDS = "stages.json"
FILES = "files.json"
GROWING = ("spo.iterations", "evaluation.episodes_per_task")
"""Keys that a finished run may raise: it goes on from where it ended."""


def stored_config(workdir: Path) -> dict[str, Any] | None:
    """The config that the workdir was last used with. Raises ConfigError for a damaged one."""
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise configs.ConfigError(f"{path} is not JSON; put it back, or use another --workdir") from None


def changed_keys(config: ConfigDict, workdir: Path) -> list[str]:
    """The keys in which the config differs from the stored one, all of which this workdir can take.

    Values of a stage may change while it has no outputs; where they were removed on purpose, it and all that was made
    from it are made again. Raises ConfigError with every difference that contradicts what is there.
    """
    before = stored_config(workdir)
    if before is None:
        return []
    changed = configs.differences(before, config)
    restarting = _restarting(config, workdir, changed)
    kept = [name for name in STAGES if name not in restarting and _present(name, config, workdir)]
    rows = {row["stage"] for row in read_jsonl(workdir / ROWS)}
    evaluated = [one for one in EVALUATIONS.values() if one.name in rows and set(one.of) <= set(kept)]
    refused = []
    for key, line in changed.items():
        if key in GROWING and _grows(before, config, key):
            continue
        holders = [STAGES[name].label for name in kept if is_common(key) or reads(STAGES[name].reads, key)]
        if any(reads(one.reads, key) for one in evaluated):
            holders.append("evaluations")
        if holders:
            growing = "; it can only grow" if key in GROWING else ""
            refused.append(f"  {line} ({', '.join(holders)}{growing})")
    if refused:
        raise configs.ConfigError(
            f"{workdir} was made with another config: use another --workdir, or the values that it was made with. To "
            "make a stage again with new values, move its folders away (checkpoints/STAGE; rsft/):\n"
            + "\n".join(refused)
        )
    return list(changed)


def _grows(before: Mapping[str, Any], config: ConfigDict, key: str) -> bool:
    section, name = key.split(".")
    return bool(config[section][name] > before.get(section, {}).get(name, np.inf))


def _present(name: str, config: ConfigDict, workdir: Path) -> bool:
    if name == "demos" and config.data == "official":  # their files lie elsewhere
        return _present("codebook", config, workdir)
    return bool(found_outputs(name, workdir))


def _restarting(config: ConfigDict, workdir: Path, changed: Mapping[str, str]) -> list[str]:
    """The stages that changed values make anew: their outputs are gone, or they were made from such a stage."""
    restarting: list[str] = []
    for name, stage in STAGES.items():
        own = any(reads(stage.reads, key) for key in changed)
        if any(need in restarting for need in needs(name, config)) or (own and not _present(name, config, workdir)):
            restarting.append(name)
    return restarting


def require_same_files(workdir: Path, versions: Mapping[str, str]) -> None:
    """Raises ConfigError where the workdir was begun with other versions of files that images are drawn from."""
    path = workdir / FILES
    if not path.exists():
        return
    try:
        before = dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise configs.ConfigError(f"{path} is not JSON; put it back, or use another --workdir") from None
    for name, version in versions.items():
        if name in before and before[name] != version:
            raise configs.ConfigError(
                f"{workdir} was begun with {name} {before[name]}, these are {version}: images of both must not be "
                "mixed. Use another --workdir, or the files that it was begun with"
            )


def accept(config: ConfigDict, workdir: Path, changed: list[str], file_versions: Mapping[str, str]) -> None:
    """Set aside what was made from stages that `changed` values make anew; store config and versions of files.

    `file_versions` are stored in a new workdir only: what an older one was begun with is not known, and what a workdir
    was copied from is said by the copy.
    """
    for name in reversed(_restarting(config, workdir, dict.fromkeys(changed, ""))):
        if found_outputs(name, workdir):
            set_aside(config, workdir, name, "a stage that it was made from is made again with other values")
    stored = workdir / "config.json"
    if file_versions and not stored.exists() and not (workdir / FILES).exists():
        atomic_write_text(workdir / FILES, json.dumps(dict(file_versions), indent=1) + "\n")
    if not stored.exists() or stored.read_text() != configs.to_json(config):
        atomic_write_text(stored, configs.to_json(config))


def begin(config: ConfigDict, workdir: Path, name: str) -> None:
    """Before a stage runs: set aside what it left if that was made from something else; record its inputs."""
    records = _records(workdir)
    now = {need: records.get(need, {}).get("made") for need in needs(name, config)}
    record = records.get(name, {})
    if found_outputs(name, workdir):
        if "from" in record and not _agree(record["from"], now):
            set_aside(config, workdir, name, "what it was made from has changed")
    else:
        _drop_account(workdir, name)
    if record.get("from") != now:
        _write_records(workdir, _records(workdir) | {name: record | {"from": now}})


def _agree(before: Mapping[str, str | None], now: Mapping[str, str | None]) -> bool:
    """Whether the marks are the same; one that was never recorded agrees with any."""
    if before.keys() != now.keys():
        return False
    return all(before[need] is None or now[need] is None or before[need] == now[need] for need in now)


def finish(config: ConfigDict, workdir: Path, name: str) -> None:
    """After a stage has run: drop evaluations, results and videos of what it had left before, if that was another."""
    mark = _mark(config, workdir, name)
    records = _records(workdir)
    record = records.get(name, {})
    if mark is None or record.get("made") == mark:
        return
    if record.get("made") is not None:
        _set_evaluations_aside(config, workdir, name, _superseded(workdir, name))
    _write_records(workdir, records | {name: record | {"made": mark}})


def set_aside(config: ConfigDict, workdir: Path, name: str, why: str) -> None:
    """Move everything that a stage has left, its evaluation too, to `superseded/`; its metrics are dropped."""
    target = _superseded(workdir, name)
    _set_evaluations_aside(config, workdir, name, target)
    _set_metrics_aside(workdir, target, STAGES[name].metrics)
    for place in found_outputs(name, workdir):
        _move(place, target / place.relative_to(workdir))
    _drop_account(workdir, name)
    telemetry.warn(f"{STAGES[name].label}: {why}; it is made again, what was there is kept in {target}")


def _set_evaluations_aside(config: ConfigDict, workdir: Path, stage: str, target: Path) -> None:
    """Move the rows, videos and measurements of every evaluation in which the stage's outcome acted."""
    names = evaluations_of(stage)
    rows = read_jsonl(workdir / ROWS)
    append_jsonl(target / ROWS, [row for row in rows if row["stage"] in names])
    for name in names:
        again = [workdir / f"evaluation_{name}.jsonl", *sorted(workdir.glob(f"evaluation_{name}_*.jsonl"))]
        for place in (*again, *sorted((workdir / "videos").glob(f"{name}_*"))):
            _move(place, target / place.relative_to(workdir))
        _drop_account(workdir, f"evaluate {name}")
    _set_metrics_aside(workdir, target, [name for name in names if EVALUATIONS[name].measure is not None])
    if any(row["stage"] in names for row in rows):
        rewrite_jsonl(workdir / ROWS, [row for row in rows if row["stage"] not in names])
        write_results(config, workdir)


def _set_metrics_aside(workdir: Path, target: Path, logged: Collection[str]) -> None:
    rows = read_jsonl(workdir / "metrics.jsonl")
    if any(row["stage"] in logged for row in rows):
        append_jsonl(target / "metrics.jsonl", [row for row in rows if row["stage"] in logged])
        rewrite_jsonl(workdir / "metrics.jsonl", [row for row in rows if row["stage"] not in logged])
    for name in logged:
        _move(workdir / "tensorboard" / name, target / "tensorboard" / name)


def _superseded(workdir: Path, name: str) -> Path:
    return workdir / "superseded" / f"{name}-{time.time_ns() // 1_000_000}"


def _move(place: Path, target: Path) -> None:
    if place.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(place, target)


def _drop_account(workdir: Path, entry: str) -> None:
    """Forget the time of a stage that starts anew, or of its evaluation."""
    for path in (workdir / "timing.json", workdir / COUNTERS):
        account = telemetry.load_account(path)
        if account.pop(entry, None) is not None:
            atomic_write_text(path, json.dumps(account, indent=1) + "\n")


def _mark(config: ConfigDict, workdir: Path, name: str) -> str | None:
    """A short hash of what a finished stage has left; None where there is nothing to tell it by."""
    if name == "demos":
        return _demonstrations_mark(config)
    found = Checkpoints(workdir / "checkpoints" / name).restore_latest(None)
    if found is None or not found[2].get("final"):
        return None
    digest = hashlib.sha256()
    leaves, _ = jax.tree_util.tree_flatten_with_path({**found[1]["fixed"], **found[1]["trainable"]})
    for path, leaf in sorted(leaves, key=lambda entry: str(entry[0])):
        digest.update(f"{path}{np.shape(leaf)}{np.asarray(leaf).dtype}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _demonstrations_mark(config: ConfigDict) -> str | None:
    """Scripted ones follow from the config; other files are told apart by their names and sizes."""
    values = {
        key: value
        for key, value in configs.relevant(config).items()
        if is_common(key) or reads(STAGES["demos"].reads, key)
    }
    if config.data != "scripted":
        try:
            files = [file_of(config, task) for task in task_names(config.env.to_dict())]
            values["files"] = [[file.name, os.path.getsize(file)] for file in files]
        except (official.StoreError, OSError):
            return None  # no longer needed, and gone
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _records(workdir: Path) -> dict[str, dict[str, Any]]:
    path = workdir / RECORDS
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except ValueError:
        telemetry.warn(f"{path} is not JSON; what the stages were made from is no longer known")
        return {}


def _write_records(workdir: Path, records: Mapping[str, Any]) -> None:
    atomic_write_text(workdir / RECORDS, json.dumps(records, indent=1))

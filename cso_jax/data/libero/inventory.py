"""What a folder of demonstration files holds, as a table: tasks, steps, observations, action range, size, problems."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from cso_jax.data.libero import official
from cso_jax.envs.libero import files as libero_files
from cso_jax.envs.protocol import EnvSpec


@dataclasses.dataclass(frozen=True)
class Inventory:
    """One file. `steps` are those of each demonstration; `low` and `high` bound its actions; `spec` describes a step.

    `problems` are what would keep it from being used, `notes` what makes it slow.
    """

    path: Path
    task: str
    suite: str
    steps: tuple[int, ...] = ()
    spec: EnvSpec | None = None
    low: float = np.nan
    high: float = np.nan
    size: int = 0
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def look(path: Path) -> Inventory:
    """Look through one file; whatever is wrong with it becomes one of its problems, nothing is raised."""
    task = path.name.removesuffix(".hdf5").removesuffix("_demo")
    known = Inventory(path, task, _suite(path, task), size=path.stat().st_size)
    try:
        known = _contents(known)
        found = official.problems(path, task, known.spec or EnvSpec({}, {}, 0))
    except OSError:  # the reason is found again, and said in a line
        found = official.problems(path, task, EnvSpec({}, {}, 0))
    except Exception as error:  # one bad file must not end the table, and HDF5 has many ways to be bad
        found = [f"{path}: {type(error).__name__}: {error}"]
    return dataclasses.replace(known, problems=tuple(found))


def _contents(known: Inventory) -> Inventory:
    with h5py.File(known.path, "r") as file:
        groups = [group for _, group in official.demonstrations(file)] if "data" in file else []
        usable = [group for group in groups if "actions" in group and len(group["actions"])]
        if not usable:
            return known
        actions = [group["actions"][()] for group in usable]
        return dataclasses.replace(
            known,
            steps=tuple(len(values) for values in actions),
            spec=_spec(usable[0]),
            low=float(min(values.min() for values in actions)),
            high=float(max(values.max() for values in actions)),
            notes=(*_notes(usable[0]), *official.action_notes(actions)),
        )


def _suite(path: Path, task: str) -> str:
    try:
        return libero_files.suite_of(task)
    except (ValueError, ModuleNotFoundError):
        return path.parent.name


def _spec(group: h5py.Group) -> EnvSpec:
    columns = {key: column for key, column in group.get("obs", {}).items() if isinstance(column, h5py.Dataset)}
    return EnvSpec(
        {key: int(column.shape[1]) for key, column in columns.items() if column.ndim == 2},
        {key: tuple(column.shape[1:]) for key, column in columns.items() if column.ndim == 4},
        group["actions"].shape[-1],
    )


def _notes(group: h5py.Group) -> tuple[str, ...]:
    for key, column in group.get("obs", {}).items():
        if not isinstance(column, h5py.Dataset):
            continue
        if column.ndim == 4 and column.chunks and column.chunks != (1, *column.shape[1:]):
            return (
                f"obs/{key} lies in blocks of {list(column.chunks)}: a random image takes milliseconds; "
                "blocks of one image, or none, are fast",
            )
    return ()


def table(found: Sequence[Inventory]) -> str:
    """The files as text: one line each, then what their steps hold, then notes and problems."""
    width = max([len(one.task) for one in found] + [4])
    lines = [f"{'task':{width}}  {'suite':14}  demos  steps min/mean/max  actions           GB"]
    lines += [_line(one, width) for one in found]
    demos, rows = sum(len(one.steps) for one in found), sum(sum(one.steps) for one in found)
    size = sum(one.size for one in found) / 1e9
    lines += [f"{len(found)} files, {demos} demonstrations, {rows} steps, {size:.2f} GB", ""]
    kinds: dict[str, list[str]] = {}
    for one in found:
        if one.spec is not None:
            kinds.setdefault(_described(one.spec), []).append(one.task)
    for text, tasks in kinds.items():
        lines.append(f"observations of {'every file' if len(kinds) == 1 else ', '.join(tasks)}:\n{text}")
    lines += [f"note: {one.path}: {note}" for one in found for note in one.notes]
    lines += [f"problem: {problem}" for one in found for problem in one.problems]
    return "\n".join(lines)


def _line(one: Inventory, width: int) -> str:
    start = f"{one.task:{width}}  {one.suite:14.14}  {len(one.steps):5d}"
    if not one.steps:
        return f"{start}  {'':18}  {'':12}  {one.size / 1e9:6.2f}  unusable"
    steps = f"{min(one.steps)}/{np.mean(one.steps):.0f}/{max(one.steps)}"
    state = f"  {len(one.problems)} problem{'s' * (len(one.problems) > 1)}" if one.problems else ""
    return f"{start}  {steps:>18}  {one.low:5.2f}..{one.high:4.2f}  {one.size / 1e9:6.2f}{state}"


def _described(spec: EnvSpec) -> str:
    images = ", ".join(f"{key} {height}x{width}" for key, (height, width, *_) in sorted(spec.images.items()))
    lowdim = ", ".join(f"{key} [{size}]" for key, size in sorted(spec.lowdim.items()))
    return f"  images: {images or 'none'}\n  numbers: {lowdim or 'none'}\n  actions: {spec.action_dim} numbers"

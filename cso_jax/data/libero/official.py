"""Official LIBERO demonstrations, and any file in the same HDF5 layout: found by task, checked, read.

data                      attributes: problem_info, env_args (JSON), bddl_file_name, num_demos, total, ...
data/demo_0               attributes: num_samples, init_state, model_file
data/demo_0/obs/<key>     [N, ...]: agentview_rgb uint8 [N, H, W, 3], joint_states float64 [N, 7], ...
data/demo_0/actions       float64 [N, A]

`cso_jax.data.store` writes this layout too. Where the two differ (numbers with gaps, float64, names), a file is taken
as it is found; only what the policy will read is looked at.
"""

import difflib
import functools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cso_jax.data.store import StoredEpisode, StoreError, opening_error
from cso_jax.envs.libero import files as libero_files
from cso_jax.envs.protocol import EnvSpec, TrainInit
from cso_jax.files import expanded

_KEPT_ARRAYS = ("expert_actions", "rewards", "dones")
_NAMED = 3
_NUMBERED = re.compile(r"demo_\d+", re.ASCII)
_REMEDIES = {"state": " (only scripted experts record the state vector; set --config.env.obs=pixels)"}


def find(folder: str | Path, task: str) -> Path:
    """The file of a task: `<task>_demo.hdf5` or `<task>.hdf5` in `folder` or in one of its subfolders.

    Raises StoreError if there is none, naming the nearest file that is there, or more than one.
    """
    root = expanded(folder)
    if not str(folder) or not root.is_dir():
        raise StoreError(
            f"no folder {str(folder)!r} of demonstrations: set config.demos.folder to where the HDF5 files are "
            "(python -m cso_jax.data download SUITE FOLDER fetches LIBERO's)"
        )
    names = (f"{task}_demo.hdf5", f"{task}.hdf5")
    found = [root / name for name in names if (root / name).is_file()]
    found = found or sorted(path for name in names for path in root.glob(f"*/{name}"))
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(str(path) for path in found)
        raise StoreError(f"more than one file of the task {task}: {listed}; name the narrower folder, or remove one")
    existing = {path.name: path for path in files(root)}
    near = difflib.get_close_matches(names[0], existing, n=1, cutoff=0.6)
    hint = f"the nearest is {existing[near[0]]}" if near else f"there are {len(existing)} HDF5 files"
    raise StoreError(
        f"no demonstrations of the task {task}: looked for {' and '.join(names)} in {root} and {root}/*; {hint}"
    )


def files(folder: str | Path) -> list[Path]:
    """The HDF5 files of a folder and its subfolders, or a single file as it is, in order of their names."""
    path = expanded(folder)
    return [path] if path.is_file() else sorted([*path.glob("*.hdf5"), *path.glob("*/*.hdf5")])


def check(path: str | Path, task: str, spec: EnvSpec) -> None:
    """Raise StoreError, one line per problem, unless `path` holds demonstrations of `task` as `spec` describes them."""
    found = problems(path, task, spec)
    if found:
        raise StoreError("\n".join(found))


def read(path: str | Path, task: str, spec: EnvSpec, *, images: bool) -> list[StoredEpisode]:
    """The demonstrations of a file, in the order of their numbers.

    Their observations are the keys of `spec`: float32 `[N, P]` and, with `images`, uint8 `[N, H, W, 3]`. `arrays` holds
    actions float32 `[N, A]` as they were recorded, and rewards, dones and expert_actions where the file has them.
    `source` says where an episode's images lie. Raises StoreError as `check` does.
    """
    path = Path(path)
    check(path, task, spec)
    keys = [*spec.lowdim, *(spec.images if images else ())]
    try:
        with h5py.File(path, "r") as file:
            return [_read_demonstration(path, task, spec, keys, *found) for found in demonstrations(file)]
    except OSError as error:
        raise opening_error(path, error) from error


def _read_demonstration(
    path: Path, task: str, spec: EnvSpec, keys: list[str], number: int, group: h5py.Group
) -> StoredEpisode:
    observations = {key: group["obs"][key][()] for key in keys}
    observations |= {key: observations[key].astype(np.float32) for key in spec.lowdim}
    arrays = {name: group[name][()] for name in _KEPT_ARRAYS if name in group}
    arrays["actions"] = group["actions"][()].astype(np.float32)
    if "expert_actions" in arrays:
        arrays["expert_actions"] = arrays["expert_actions"].astype(np.float32)
    return StoredEpisode(TrainInit(task, number).name, observations, arrays, source=(path, group.name.lstrip("/")))


def problems(path: str | Path, task: str, spec: EnvSpec) -> list[str]:
    """What keeps a file from being demonstrations of `task`, one sentence per problem; empty for a good file."""
    path = Path(path)
    if not path.is_file():
        return [f"no demonstration file {path}"]
    try:
        with h5py.File(path, "r") as file:
            found = _file_problems(file, task)
            if not found:
                found = _gathered([(group.name.split("/")[-1], _episode_problems(group, spec))
                                   for _, group in demonstrations(file)])  # fmt: skip
    except (OSError, RuntimeError) as error:
        return [str(opening_error(path, error))]
    return [f"{path}: {problem}" for problem in found]


def demonstrations(file: h5py.File) -> Iterator[tuple[int, h5py.Group]]:
    """(number, group) of every `data/demo_<number>` of an open file, by number; leading zeros do not matter."""
    found = sorted((int(name[5:]), name) for name in file["data"] if _NUMBERED.fullmatch(name))
    return ((number, file["data"][name]) for number, name in found if isinstance(file["data"][name], h5py.Group))


def _file_problems(file: h5py.File, task: str) -> list[str]:
    if not isinstance(file.get("data"), h5py.Group):
        return [f"no group 'data', so not the layout of LIBERO and robomimic; it holds {_listed(file)}"]
    if next(demonstrations(file), None) is None:
        return [f"no demonstrations: no group data/demo_<number>; it holds {_listed(file['data'])}"]
    found = []
    numbers = [number for number, _ in demonstrations(file)]
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    if twice:
        found.append(f"two demonstrations of the number {twice[0]}, with and without leading zeros: rename one")
    other = _other_task(file["data"], task)
    if other:
        found.append(f"demonstrations of another task: {other}, not {task}")
    convention = text_attribute(file["data"], "macros_image_convention") or "opengl"
    if convention != "opengl":
        found.append(
            f"images in the convention {convention!r}, top row first; the simulator's are bottom row first (opengl): "
            "turn them over"
        )
    return found


def _other_task(data: h5py.Group, task: str) -> str:
    """The task that a file names where that is certainly not `task`, else ""."""
    environment, problem = (json_attribute(data, name) for name in ("env_args", "problem_info"))
    arguments = environment.get("env_kwargs")
    named = [text_attribute(data, "bddl_file_name"), environment.get("bddl_file"), environment.get("task")]
    named += [arguments.get("bddl_file_name")] if isinstance(arguments, dict) else []
    stems = [Path(name).name.removesuffix(".bddl") for name in named if isinstance(name, str) and name]
    if task in stems:
        return ""
    if isinstance(environment.get("task"), str):
        return environment["task"]
    instructions = _libero_instructions()
    if task not in instructions:
        return ""
    for stem in stems:
        if stem in instructions:
            return stem
    # The official files name descriptions that were renamed after they were recorded, so an unknown name says nothing.
    said = instruction_of(problem).lower()
    if said in instructions[task]:
        return ""
    return next((other for other, sentences in instructions.items() if said in sentences), "")


def instruction_of(problem_info: dict[str, Any]) -> str:
    """The sentence in `problem_info`, which LIBERO's tools write as text or as a list of pieces; "" for none."""
    said = problem_info.get("language_instruction") or ""
    pieces = [said] if isinstance(said, str) else said if isinstance(said, list) else []
    return "".join(piece for piece in pieces if isinstance(piece, str)).strip().strip('"')


def text_attribute(group: h5py.Group, name: str) -> str:
    """A text attribute however HDF5 holds it: of variable or fixed length (bytes), alone or in an array; or ""."""
    value = group.attrs.get(name)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    if isinstance(value, bytes):
        return value.rstrip(b"\0").decode(errors="replace")
    return value if isinstance(value, str) else ""


def json_attribute(group: h5py.Group, name: str) -> dict[str, Any]:
    """A JSON attribute that should hold a dictionary; an empty one where it does not."""
    try:
        value = json.loads(text_attribute(group, name) or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


@functools.cache
def _libero_instructions() -> dict[str, set[str]]:
    """Task -> its sentences in lower case: the benchmark's, and the description's (34 of 130 differ)."""
    try:
        tasks = [task for suite in libero_files.SUITES for task in libero_files.task_sets()[suite]]
    except ModuleNotFoundError:
        return {}  # without LIBERO only names can be compared
    return {task: {libero_files.language(task).lower(), _described(task).lower()} for task in tasks}


def _described(task: str) -> str:
    text = libero_files.bddl_file(task).read_text()
    return text.partition("(:language")[2].partition(")")[0].strip()


def _episode_problems(group: h5py.Group, spec: EnvSpec) -> list[str]:
    """Problems of one demonstration, in words that are the same for every demonstration that has them."""
    actions, observations = group.get("actions"), group.get("obs")
    if not isinstance(actions, h5py.Dataset) or not isinstance(observations, h5py.Group):
        return [f"no {'obs' if isinstance(actions, h5py.Dataset) else 'actions'}; there is {_listed(group)}"]
    found = _column_problems("actions", actions, len(actions), (spec.action_dim,))
    for key, shape in [*((key, (size,)) for key, size in spec.lowdim.items()), *spec.images.items()]:
        if isinstance(observations.get(key), h5py.Dataset):
            found += _column_problems(f"obs/{key}", observations[key], len(actions), shape)
        else:
            found.append(f"no obs/{key}; there is {_listed(observations)}{_REMEDIES.get(key, '')}")
    if not len(actions):
        found.append("no steps")
    return found


def _column_problems(name: str, column: h5py.Dataset, rows: int, shape: tuple[int, ...]) -> list[str]:
    image = len(shape) == 3
    if image and column.ndim == 4 and column.shape[1] == 3 and column.shape[3] != 3:
        return [f"{name} holds images with the channels first {list(column.shape[1:])}, [H, W, 3] is expected: store "
                "numpy.transpose(images, (0, 2, 3, 1))"]  # fmt: skip
    if image and column.shape[-1:] == (3,) and column.ndim == 4 and column.shape[1:] != shape:
        (height, width), (wanted_height, wanted_width) = column.shape[1:3], shape[:2]
        remedy = (
            f"set --config.env.image_size={height}, or render the file again" if height == width else "render again"
        )
        return [f"{name} holds images of {height} x {width}, {wanted_height} x {wanted_width} are expected: {remedy}"]
    if column.ndim != 1 + len(shape) or column.shape[1:] != shape:
        return [f"{name} has the shape {list(column.shape[1:])} per step, {list(shape)} is expected"]
    if len(column) != rows:
        return [f"{name} has another number of rows than actions"]
    if image and column.dtype != np.uint8:
        return [f"{name} holds {column.dtype} images, uint8 is expected"]
    if column.dtype.kind not in "fiu":
        return [f"{name} holds {column.dtype}, numbers are expected"]
    missing = _missing_filter(column)
    if missing:
        return [f"{name} is compressed with {missing}, which is not installed here: h5repack -f GZIP=4 OLD NEW"]
    try:
        # Of images only one: that the first demonstration's are whole says little, that each has a readable one a lot.
        values = column[len(column) // 2] if image and len(column) else column[()]
    except OSError as error:
        return [f"{name} cannot be read ({' '.join(str(error).split())[:80]}): the file is damaged, copy it again"]
    return [] if image or np.isfinite(values).all() else [f"{name} holds numbers that are not finite"]


def _missing_filter(column: h5py.Dataset) -> str:
    """The first filter of a dataset that this HDF5 library cannot undo, "" where there is none."""
    layout = column.id.get_create_plist()
    for number in range(layout.get_nfilters()):
        code, _, _, name = layout.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            return f"{name.decode(errors='replace') or 'a plugin'} (HDF5 filter {code})"
    return ""


ACTION_RULES = ("clip", "gripper_01", "gripper_10", "refuse")
"""What is done with actions that are not in the simulator's convention: all numbers in [-1, 1], and of the gripper, the
last one, -1 opens, 1 closes, 0 leaves the fingers where they are.

    clip        numbers outside are clipped, as the controller would; the gripper stays as it is
    gripper_01  gripper from [0, 1] where 0 opens and 1 closes; then clip
    gripper_10  gripper from [0, 1] where 1 opens and 0 closes (as RLDS files have it); then clip
    refuse      anything outside the convention is an error
"""


def conform(actions: np.ndarray, rule: str) -> np.ndarray:
    """Actions `[N, A]` by a rule of ACTION_RULES."""
    if rule == "refuse":
        return actions
    actions = actions.copy()
    if rule != "clip":
        opening = 1.0 if rule == "gripper_01" else -1.0
        actions[:, -1] = opening * (2.0 * actions[:, -1] - 1.0)
    return np.clip(actions, -1.0, 1.0)


def action_notes(actions: Sequence[np.ndarray]) -> list[str]:
    """How the actions `[N_i, A]` of a file's demonstrations break the convention, a sentence each."""
    together = np.concatenate(actions)
    notes = []
    outside = np.abs(together) > 1.0 + 1e-6
    if outside.any():
        notes.append(
            f"{outside.any(axis=1).sum()} of {len(together)} actions are outside [-1, 1], up to "
            f"{np.abs(together).max():.3g}: the controller takes no more than 1, and they are clipped"
        )
    gripper = together[:, -1]
    if gripper.min() >= 0.0 and gripper.min() < 1.0:
        notes.append(
            "the gripper's action is never negative, and only -1 opens it (1 closes, 0 holds): no policy can learn to "
            "let go. If the file means 0 and 1, set --config.demos.actions=gripper_01 (0 opens) or gripper_10 (1 opens)"
        )
    return notes


def _gathered(by_demo: list[tuple[str, list[str]]]) -> list[str]:
    """One line per distinct problem, with the demonstrations that have it."""
    where: dict[str, list[str]] = {}
    for demo, found in by_demo:
        for problem in found:
            where.setdefault(problem, []).append(demo)
    lines = []
    for problem, demos in where.items():
        more = f" and {len(demos) - _NAMED} more" if len(demos) > _NAMED else ""
        place = "in every demonstration" if len(demos) == len(by_demo) else f"in {', '.join(demos[:_NAMED])}{more}"
        lines.append(f"{problem} ({place})")
    return lines


def _listed(names: Any) -> str:
    shown = sorted(names)
    return (", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")) or "nothing"

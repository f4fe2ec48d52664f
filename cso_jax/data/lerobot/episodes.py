"""Our episode files (`cso_jax.data.store`) as LeRobot data sets: which entry becomes which feature, and what
LeRobot has no place for.

    obs/KEY of one row of numbers    observation.state, all of them side by side, the parts named KEY.0, KEY.1, ...;
                                     and, where there are several, observation.KEY each
    obs/KEY of images                observation.images.KEY
    actions, rewards, dones          action, next.reward, next.done; and next.success: a reward above 0 until here
    other arrays                     features of their own names; those whose rows differ in size between episodes, such
                                     as a simulator's states, lie beside the set, in meta/cso_jax.hdf5

What a file and its episodes say of themselves stands in meta/cso_jax.json and in the columns cso_jax/* of
meta/episodes, with the types that the way back needs (`cso_jax.data.lerobot.stores`).
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cso_jax import envs, telemetry
from cso_jax.data import store
from cso_jax.data.lerobot.layout import (
    ACTION,
    DONE,
    ENVIRONMENT_STATE,
    IMAGES,
    INDICES,
    NUMBERS,
    OBSERVATION,
    REWARD,
    STATE,
    SUCCESS,
    Feature,
    Frames,
    LeRobotError,
    fresh_folder,
    names_of,
    oriented,
    package,
)
from cso_jax.data.lerobot.writing import Limits, Writer
from cso_jax.data.libero.official import instruction_of

OWN = "meta/cso_jax.json"
BESIDE = "meta/cso_jax.hdf5"
FILE, INIT, ATTRIBUTES, NUMBER = (f"cso_jax/{name}" for name in ("file", "init", "attributes", "number"))

ARRAYS = {"actions": ACTION, "rewards": REWARD, "dones": DONE}
"""The features of the store's arrays; others keep their name."""

_COUNTED = ("total", "num_demos")  # the store writes them itself


def to_lerobot(
    source: Path,
    out: Path,
    *,
    fps: int,
    robot: str = "",
    orientation: str = "as_is",
    video: bool = True,
    limits: Limits | None = None,
) -> int:
    """Write the episodes of a folder of HDF5 files (or of one file) as a LeRobot data set; how many there were.

    Raises StoreError for files that are damaged or do not go together; then there is no `out`.
    """
    package("pyarrow.parquet")
    if video:
        package("av")
    paths = store_files(source)
    uneven = _uneven_arrays(paths)
    about: dict[str, Any] = {"files": {}, "columns": {}, "beside": sorted(uneven), "images": orientation}
    writer, written = None, 0
    with fresh_folder(out) as folder:
        try:
            for path in telemetry.progress(paths, "episodes to LeRobot", unit="file"):
                episodes, attributes = store.read(path, images=False)
                kept = {name: value for name, value in attributes.items() if name not in _COUNTED}
                about["files"][path.name] = as_json(kept)
                for episode in episodes:
                    beside = {name: values for name, values in episode.arrays.items() if name in uneven}
                    episode.arrays = {name: values for name, values in episode.arrays.items() if name not in uneven}
                    columns, types = _columns(path, episode, orientation)
                    if writer is None:
                        about["columns"] = types
                        features = _features(path, episode, columns, video)
                        writer = Writer(folder, features, fps=fps, robot=robot, limits=limits)
                    if types != about["columns"]:
                        raise LeRobotError(_different(path, episode, types, about["columns"]))
                    writer.add(columns, _sentence(attributes, episode), {**_facts(path, episode), NUMBER: written})
                    if beside:
                        _write_beside(folder / BESIDE, written, beside)
                    written += 1
            if writer is None:
                raise LeRobotError(f"no episodes in {source}; name a folder that holds some")
            writer.close()
            (folder / OWN).write_text(json.dumps(about, indent=1))
        except BaseException:
            if writer is not None:
                writer.abandon()
            raise
    return written


def store_files(source: Path) -> list[Path]:
    """The episode files of a folder, in order of their names, or the one that is named."""
    paths = [source] if source.is_file() else sorted(source.glob("*.hdf5"))
    if not paths:
        inner = sorted({path.parent.name for path in source.glob("*/*.hdf5")})
        hint = f"there are some in its {', '.join(inner)}: name one of those" if inner else "name a folder with some"
        raise LeRobotError(f"no episode files *.hdf5 in {source}; {hint}")
    return paths


def _uneven_arrays(paths: Sequence[Path]) -> set[str]:
    """The arrays that not every episode has, or not in the same type and shape; each of LeRobot's features has one."""
    kinds: dict[str, list[Any]] = {}
    episodes = 0
    for path in paths:
        # What is damaged is told when it is read.
        with contextlib.suppress(OSError, KeyError, RuntimeError, AttributeError), h5py.File(path, "r") as file:
            for group in file["data"].values():
                episodes += 1
                for name, column in group.items():
                    if isinstance(column, h5py.Dataset) and name not in ARRAYS:
                        kinds.setdefault(name, []).append((column.shape[1:], column.dtype))
    return {name for name, found in kinds.items() if len(set(found)) > 1 or len(found) < episodes}


def _write_beside(path: Path, number: int, arrays: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "a") as file:
        for name, values in arrays.items():
            file[f"{number}/{name}"] = values


def _columns(path: Path, episode: store.StoredEpisode, orientation: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Feature -> N values, and feature -> what it was in the store: where, of which type and shape."""
    columns: dict[str, Any] = {}
    types: dict[str, Any] = {}

    def put(feature: str, place: str, values: Any, stored: np.ndarray | Frames) -> None:
        columns[feature] = values
        dtype = str(stored.dtype) if isinstance(stored, np.ndarray) else "uint8"
        types[feature] = {"store": place, "dtype": dtype, "shape": list(stored.shape[1:])}

    rows = {key: values for key, values in episode.observations.items() if _row_of_numbers(values)}
    if rows:
        put(STATE, "", np.concatenate(list(rows.values()), axis=1), np.zeros((0,)))
        types[STATE] = {"entries": {key: {"dtype": str(values.dtype)} for key, values in rows.items()}}
    for key, values in episode.observations.items():
        if key not in rows or len(rows) > 1:
            name = OBSERVATION + key
            put(name if name != STATE else ENVIRONMENT_STATE, f"obs/{key}", values, values)
    for key, images in _stored_images(path, episode, orientation).items():
        put(IMAGES + key, f"obs/{key}", images, images)
    for name, values in episode.arrays.items():
        feature = ARRAYS.get(name, name if name not in (*INDICES, *ARRAYS.values()) else f"store.{name}")
        put(feature, name, _yes_or_no(path, episode, values) if feature == DONE else values, values)
    if "rewards" in episode.arrays:
        columns[SUCCESS] = np.maximum.accumulate(np.asarray(episode.arrays["rewards"]).reshape(len(episode)) > 0)
        types[SUCCESS] = {}
    return columns, types


def _row_of_numbers(values: np.ndarray) -> bool:
    return values.ndim == 2 and values.dtype.kind == "f"


def _yes_or_no(path: Path, episode: store.StoredEpisode, values: np.ndarray) -> np.ndarray:
    if not np.isin(values, (0, 1)).all():
        raise LeRobotError(f"{path}: dones of {episode.init} are not all 0 or 1, as next.done needs them")
    return values.astype(bool)


def _stored_images(path: Path, episode: store.StoredEpisode, orientation: str) -> dict[str, Frames]:
    """The episode's images, each camera's read when it is written."""
    assert episode.source is not None
    group = episode.source[1]

    def load(key: str) -> np.ndarray:
        try:
            with h5py.File(path, "r") as file:
                return oriented(file[f"{group}/obs/{key}"][()], orientation)
        except (OSError, KeyError) as error:
            raise store.opening_error(path, error) from error

    try:
        with h5py.File(path, "r") as file:
            found = {key: column for key, column in file[f"{group}/obs"].items() if column.ndim == 4}
            for key, column in found.items():
                if column.dtype != np.uint8 or column.shape[-1] != 3:
                    raise LeRobotError(f"{path}: obs/{key} is {column.dtype} {list(column.shape[1:])}, colour images "
                                       "[H, W, 3] in uint8 are expected")  # fmt: skip
            return {key: Frames(column.shape, lambda key=key: load(key)) for key, column in found.items()}
    except OSError as error:
        raise store.opening_error(path, error) from error


def _features(path: Path, episode: store.StoredEpisode, columns: Mapping[str, Any], video: bool) -> dict[str, Feature]:
    found = {}
    for name, values in columns.items():
        shape = tuple(values.shape[1:]) or (1,)
        if isinstance(values, Frames):
            found[name] = Feature(name, "video" if video else "image", shape)
            continue
        if str(values.dtype) not in NUMBERS:
            raise LeRobotError(f"{path}: {name} of {episode.init} holds {values.dtype}; numbers are expected")
        parts: tuple[str, ...] = ()
        if name == STATE:
            rows = {key: each for key, each in episode.observations.items() if _row_of_numbers(each)}
            parts = tuple(part for key, each in rows.items() for part in names_of(key, each.shape[1]))
        elif len(shape) == 1 and shape != (1,):
            parts = tuple(names_of(name.removeprefix(OBSERVATION), shape[0]))
        found[name] = Feature(name, str(values.dtype), shape, parts)
    return found


def _different(path: Path, episode: store.StoredEpisode, types: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    names = [name for name in (*types, *first) if types.get(name) != first.get(name)]
    return (
        f"{path}: {names[0]} of {episode.init} is {types.get(names[0], 'not there')}, in the first episode "
        f"{first.get(names[0], 'not there')}; convert files of different kinds into sets of their own"
    )


def _facts(path: Path, episode: store.StoredEpisode) -> dict[str, Any]:
    rewards = episode.arrays.get("rewards")
    return {
        "success": None if rewards is None else bool((rewards > 0).any()),
        FILE: path.name,
        INIT: episode.init,
        ATTRIBUTES: json.dumps(as_json(dict(episode.attributes))),
    }


def _sentence(attributes: Mapping[str, Any], episode: store.StoredEpisode) -> str:
    """What the episode's task asks for: as the file says, as a benchmark says, or the task's name in words."""
    problem = attributes.get("problem_info")
    said = instruction_of(problem) if isinstance(problem, dict) else ""
    task = episode.init.split(":")[1] if episode.init.count(":") == 2 else episode.init
    return said or next(_sentences_of_benchmarks(task), "") or task.replace("_", " ").replace("-", " ")


def _sentences_of_benchmarks(task: str) -> Iterator[str]:
    for name in envs.BENCHMARKS:
        try:
            settings = envs.benchmark(name).default_config()["env"]
            if any(task in tasks for tasks in envs.benchmark(name).task_sets(settings).values()):
                yield envs.sentence(settings, task)
        except (ImportError, FileNotFoundError):  # a simulator that is not installed here
            continue


def as_json(value: Any) -> Any:
    """Attributes as JSON, arrays with their type."""
    if isinstance(value, np.ndarray):
        return {"__array__": value.tolist(), "dtype": str(value.dtype), "shape": list(value.shape)}
    if isinstance(value, Mapping):
        return {str(key): as_json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(each) for each in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.item() if isinstance(value, np.generic) else value


def from_json(value: Any) -> Any:
    """What `as_json` was given."""
    if isinstance(value, dict):
        if "__array__" in value:
            return np.array(value["__array__"], value["dtype"]).reshape(value["shape"])
        return {key: from_json(each) for key, each in value.items()}
    return [from_json(each) for each in value] if isinstance(value, list) else value

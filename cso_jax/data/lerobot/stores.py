"""LeRobot data sets as our episode files (`cso_jax.data.store`), which a run can train from.

A set that `cso_jax.data.lerobot.episodes` wrote becomes the files that it was made from. Of any other set, every task
becomes one file, `TASK.hdf5`: its sentence says which task of a benchmark it is, its state is told apart by one of
`PROPRIO`, its cameras are named as asked. What it has beside those (`observation.X`) keeps its name.
"""

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cso_jax import envs, telemetry
from cso_jax.data import store
from cso_jax.data.lerobot.episodes import ARRAYS, ATTRIBUTES, BESIDE, FILE, INIT, NUMBER, OWN, from_json
from cso_jax.data.lerobot.layout import (
    ACTION,
    DONE,
    IMAGES,
    INFO,
    OBSERVATION,
    REWARD,
    STATE,
    SUCCESS,
    Frames,
    LeRobotError,
    entries_of,
    fresh_folder,
    oriented,
    package,
)
from cso_jax.data.lerobot.reading import DataSet, Episode
from cso_jax.envs.protocol import TrainInit

PROPRIO: Mapping[str, Mapping[str, int]] = {
    "as_is": {},
    "ee8": {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2},
    "joints9": {"joint_states": 7, "gripper_states": 2},
}
"""What `observation.state` is made of, in order: entries and their sizes; of "as_is" what the names in info.json say
(`entry.0`, ...), else one entry `state`.

    ee8      LIBERO's sets on the hub: position of the hand (m), its rotation as axis times angle (rad), fingers (m)
    joints9  the arm's seven angles (rad), both fingers (m)
"""

CAMERAS = {"libero": {"image": "agentview_rgb", "image2": "eye_in_hand_rgb", "wrist_image": "eye_in_hand_rgb"}}
"""Names of cameras in sets of a benchmark, and the benchmark's own."""

_NEAREST = 3


@dataclasses.dataclass(frozen=True)
class Choices:
    """How another program's set is understood. `cameras`: names in the set -> in the store; `env`, `tasks`: whose
    sentences to look for, by names of tasks and of sets of them, none for all."""

    orientation: str = "as_is"
    proprio: str = "as_is"
    cameras: Mapping[str, str] = dataclasses.field(default_factory=dict)
    env: str = "libero"
    tasks: tuple[str, ...] = ()


def to_store(source: Path, out: Path, choices: Choices) -> dict[str, int]:
    """Write a data set's episodes as HDF5 files into the folder `out`; how many each file holds.

    Raises StoreError for a set that is damaged or does not fit; then there is no `out`.
    """
    package("pyarrow.parquet")
    data = DataSet(source)
    if any(feature.dtype == "video" for feature in data.features.values()):
        package("av")
    if ACTION not in data.features:
        raise LeRobotError(f"{source}/{INFO} names no feature {ACTION}: there is nothing to learn from")
    about = _about(data)
    files: dict[str, list[store.StoredEpisode]] = {}
    attributes: dict[str, dict[str, Any]] = {}
    known = {} if about else _tasks_by_sentence(choices)
    for episode in data.episodes():
        if about:
            name, stored = str(episode.row[FILE]), _own(data, episode, about, choices)
            attributes[name] = from_json(about["files"].get(name, {}))
        else:
            task = _task_of(episode, known, choices)
            name = f"{task}.hdf5"
            stored = _foreign(episode, data, TrainInit(task, len(files.get(name, ()))), choices)
            attributes[name] = _file_attributes(task, episode.sentence, choices)
        files.setdefault(name, []).append(stored)
    _check_names(source, files)
    if not about:
        _warn_of_failures(source, files)
    with fresh_folder(out) as folder:
        for name, episodes in telemetry.progress(files.items(), "episodes from LeRobot", unit="file"):
            store.write(folder / name, episodes, attributes[name])
    return {name: len(episodes) for name, episodes in files.items()}


def _about(data: DataSet) -> dict[str, Any]:
    """What `episodes.to_lerobot` noted beside the set; nothing for sets of others, or where tools dropped the notes."""
    path = data.folder / OWN
    if not path.is_file() or not all(row.get(FILE) and row.get(INIT) for row in data.rows):
        return {}
    try:
        about = json.loads(path.read_text())
    except ValueError as error:
        raise LeRobotError(f"{path} is not complete JSON ({error}); copy it again, or remove it to have the set read "
                           "as any other") from error  # fmt: skip
    if not isinstance(about, dict) or not {"files", "columns", "beside"} <= about.keys():
        raise LeRobotError(f"{path} is not what convert writes; remove it to have the set read as any other")
    missing = sorted(set(data.features) - set(about["columns"]) - {"timestamp", "index"})
    missing = [name for name in missing if not name.endswith("_index")]
    if missing:
        raise LeRobotError(f"{path} knows no feature {missing[0]}, which was added later; remove the file to have the "
                           "set read as any other")  # fmt: skip
    return about


def _own(data: DataSet, episode: Episode, about: Mapping[str, Any], choices: Choices) -> store.StoredEpisode:
    """The episode as it was in the store."""
    observations: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for feature, facts in about["columns"].items():
        place = facts.get("store")
        if not place:
            continue  # made from others
        if feature in episode.images:
            observations[place.removeprefix("obs/")] = _turned(episode.images[feature], choices.orientation)
            continue
        if feature not in episode.columns:
            raise LeRobotError(f"episode {episode.index} has no {feature}, which {OWN} names; copy the set again")
        values = episode.columns[feature].astype(facts["dtype"]).reshape(len(episode.columns[ACTION]), *facts["shape"])
        if place.startswith("obs/"):
            observations[place.removeprefix("obs/")] = values
        else:
            arrays[place] = values
    entries = about["columns"].get(STATE, {}).get("entries", {})
    if len(entries) == 1:  # where there are more, each has a feature of its own
        ((key, facts),) = entries.items()
        values = episode.columns[STATE].reshape(len(arrays["actions"]), -1)
        observations.setdefault(key, values.astype(facts["dtype"]))
    if about["beside"]:
        arrays |= _read_beside(data.folder / BESIDE, episode)
    attributes = from_json(json.loads(episode.row.get(ATTRIBUTES) or "{}"))
    return store.StoredEpisode(str(episode.row[INIT]), observations, arrays, attributes)


def _read_beside(path: Path, episode: Episode) -> dict[str, np.ndarray]:
    """The episode's arrays that no feature can hold."""
    try:
        with h5py.File(path, "r") as file:
            found = {name: column[()] for name, column in file.get(str(episode.row[NUMBER]), {}).items()}
    except (OSError, KeyError, RuntimeError) as error:
        raise store.opening_error(path, error) from error
    if any(len(values) != len(episode.columns[ACTION]) for values in found.values()):
        raise LeRobotError(f"{path}: episode {episode.index} has another number of rows than {ACTION}; the set was "
                           f"changed since: remove {OWN} to have it read as any other")  # fmt: skip
    return found


def _foreign(episode: Episode, data: DataSet, init: TrainInit, choices: Choices) -> store.StoredEpisode:
    """Another program's episode in our layout."""
    actions = episode.columns[ACTION].astype(np.float32)
    if actions.ndim == 1:
        actions = actions[:, None]
    length = len(actions)
    observations: dict[str, Any] = {}
    for name, values in episode.columns.items():
        key = name.removeprefix(OBSERVATION)
        if name == STATE:
            observations |= _parts(values.reshape(length, -1), data, choices)
        elif name.startswith(OBSERVATION):
            observations.setdefault(key, values.astype(np.float32).reshape(length, *values.shape[1:] or (1,)))
    names = {**CAMERAS.get(choices.env, {}), **choices.cameras}
    for name, frames in episode.images.items():
        key = name.removeprefix(IMAGES).removeprefix(OBSERVATION)
        key = names.get(key, key)
        if key in observations:
            raise LeRobotError(f"{data.folder}: two entries would be called {key}; name the cameras apart: "
                               "--cameras=NAME:OURS,...")  # fmt: skip
        observations[key] = _turned(frames, choices.orientation)
    last = np.arange(length) == length - 1
    arrays = {"actions": actions, "rewards": _rewards(episode, last), "dones": last.astype(np.uint8)}
    taken = {ACTION, REWARD, DONE, SUCCESS, *ARRAYS}
    others = {name.replace("/", "."): values for name, values in episode.columns.items()
              if not name.startswith(OBSERVATION) and name not in taken}  # fmt: skip
    return store.StoredEpisode(init.name, observations, {**others, **arrays}, {"lerobot_episode": episode.index})


def _parts(state: np.ndarray, data: DataSet, choices: Choices) -> dict[str, np.ndarray]:
    """A state `[N, P]` as named entries `[N, p]` float32."""
    state = state.astype(np.float32)
    sizes = PROPRIO[choices.proprio]
    if not sizes:
        named = entries_of(data.features[STATE].names)
        return {key: state[:, part] for key, part in named.items()} if named else {"state": state}
    if sum(sizes.values()) != state.shape[1]:
        fitting = [name for name, parts in PROPRIO.items() if sum(parts.values()) == state.shape[1]]
        listed = ", ".join(f"{key} {size}" for key, size in sizes.items())
        raise LeRobotError(
            f"{data.folder}: {STATE} has {state.shape[1]} numbers, --proprio={choices.proprio} means "
            f"{sum(sizes.values())} ({listed}); take --proprio={' or '.join([*fitting, 'as_is'])}"
        )
    ends = np.cumsum(list(sizes.values()))
    return {key: state[:, end - size : end] for (key, size), end in zip(sizes.items(), ends, strict=True)}


def _rewards(episode: Episode, last: np.ndarray) -> np.ndarray:
    """1 where the task is solved; where the set does not say, a demonstration solves it with its last step."""
    for name in (SUCCESS, REWARD):
        if name in episode.columns:
            return (episode.columns[name].reshape(len(last)) > 0).astype(np.float32)
    return last.astype(np.float32)


def _turned(frames: Frames, orientation: str) -> Frames:
    return Frames(frames.shape, lambda: oriented(frames, orientation))


def _tasks_by_sentence(choices: Choices) -> dict[str, list[str]]:
    """The benchmark's tasks by what they ask for, in the form of `_plain`."""
    if choices.env not in envs.BENCHMARKS:
        raise LeRobotError(f"--env={choices.env} is no benchmark; there are {', '.join(envs.BENCHMARKS)}")
    settings = envs.benchmark(choices.env).default_config()["env"] | {"tasks": choices.tasks}
    try:
        sets = envs.benchmark(choices.env).task_sets(settings)
        every = dict.fromkeys(task for tasks in sets.values() for task in tasks)
        tasks = envs.task_names(settings) if choices.tasks else tuple(every)
    except (ValueError, ImportError, FileNotFoundError) as error:
        raise LeRobotError(str(error)) from error
    found: dict[str, list[str]] = {}
    for task in tasks:
        found.setdefault(_plain(envs.sentence(settings, task)), []).append(task)
    return found


def _plain(sentence: str) -> str:
    return " ".join(sentence.lower().rstrip(". ").split())


def _task_of(episode: Episode, known: Mapping[str, Sequence[str]], choices: Choices) -> str:
    tasks = known.get(_plain(episode.sentence), ())
    if len(tasks) == 1:
        return tasks[0]
    if tasks:
        raise LeRobotError(
            f"episode {episode.index}: {len(tasks)} tasks ask for {episode.sentence!r} "
            f"({', '.join(tasks[:_NEAREST])}); --tasks=SUITES,TASKS says which are meant"
        )
    near = difflib.get_close_matches(_plain(episode.sentence), known, n=_NEAREST, cutoff=0.0)
    listed = ", ".join(map(repr, near)) or "none"
    raise LeRobotError(
        f"episode {episode.index}: no task of {choices.env} asks for {episode.sentence!r}; the nearest: {listed}. Mend "
        "the set's sentences, or name the benchmark: --env"
    )


def _file_attributes(task: str, sentence: str, choices: Choices) -> dict[str, Any]:
    """As scripted demonstrations have them, so that a run finds the task and checks it."""
    return {
        "env_args": {"env_name": choices.env, "type": 1, "task": task},
        "bddl_file_name": f"{task}.bddl",
        "problem_info": {"language_instruction": sentence},
    }


def _check_names(source: Path, files: Mapping[str, Any]) -> None:
    bad = [name for name in files if Path(name).name != name or not name.endswith(".hdf5") or name.startswith(".")]
    if bad:
        raise LeRobotError(f"{source}: an episode names the file {bad[0]!r}, no plain NAME.hdf5; remove {OWN} to have "
                           "the set read as any other")  # fmt: skip


def _warn_of_failures(source: Path, files: Mapping[str, Sequence[store.StoredEpisode]]) -> None:
    failed = sum(not (episode.arrays["rewards"] > 0).any() for episodes in files.values() for episode in episodes)
    if failed:
        telemetry.warn(f"{source}: {failed} episodes never succeed; a run imitates them like the others")

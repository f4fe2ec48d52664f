"""What reading and writing LeRobot's data sets of version 3.0 share: names, packages, errors, a fresh output folder.

meta/info.json                             version, fps, features {name: {dtype, shape, names}}, paths, totals
meta/stats.json                            per feature: min, max, mean, std, count, quantiles
meta/tasks.parquet                         task (the sentence), task_index
meta/episodes/chunk-000/file-000.parquet   a row per episode: its tasks and length, which files hold it, and where
data/chunk-000/file-000.parquet            a row per frame: numbers, PNG images, timestamp, indices
videos/KEY/chunk-000/file-000.mp4          the frames of several episodes, one after the other

Source: the documentation and the code of LeRobot 0.6 (github.com/huggingface/lerobot).
"""

import contextlib
import dataclasses
import importlib
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cso_jax.data.store import StoreError

VERSION = "v3.0"
INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
CHUNK = "chunk-{chunk_index:03d}/file-{file_index:03d}"
EPISODES = f"meta/episodes/{CHUNK}.parquet"
DATA = f"data/{CHUNK}.parquet"
VIDEO = f"videos/{{video_key}}/{CHUNK}.mp4"

STATE = "observation.state"
ENVIRONMENT_STATE = "observation.environment_state"
OBSERVATION = "observation."
IMAGES = "observation.images."
ACTION = "action"
REWARD, DONE, SUCCESS = "next.reward", "next.done", "next.success"

INDICES: Mapping[str, str] = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
"""Features that every set has, one number per frame, and their types. `timestamp` is in seconds from the episode's
first frame, `index` counts frames through the whole set."""

NUMBERS = ("bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float32", "float64")
PICTURES = ("image", "video")
WORDS = ("string", "language")
"""Types of features that are known and not read."""

_INSTALL = "pip install pyarrow av"


class LeRobotError(StoreError):
    """A data set is missing, damaged or of another kind, or cannot be written; the message says what to do."""


def package(name: str) -> Any:
    """The module `name` of pyarrow or av. Raises LeRobotError, with the command that installs them, without it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise LeRobotError(f"LeRobot data sets need the package {name.partition('.')[0]}: {_INSTALL}") from error


@dataclasses.dataclass(frozen=True)
class Feature:
    """A column of a set: its type (NUMBERS, PICTURES or WORDS), the shape of one frame's value, names of its parts.

    `pixels` is (H, W, 3) for pictures, however the set orders their axes, and () for everything else.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many numbers a frame has."""
        return math.prod(self.shape)

    @property
    def pixels(self) -> tuple[int, ...]:
        if self.dtype not in PICTURES:
            return ()
        first = self.names[0].startswith("channel") if self.names else self.shape[0] == 3 != self.shape[-1]
        return (*self.shape[1:], self.shape[0]) if first else self.shape


def entries_of(names: tuple[str, ...]) -> dict[str, slice]:
    """The parts of a state whose names are `entry.0`, `entry.1`, ..., as our writer gives them; else none."""
    found: dict[str, slice] = {}
    for place, name in enumerate(names):
        entry, _, number = name.rpartition(".")
        start = found[entry].start if entry in found else place
        if not entry or number != str(place - start) or found.get(entry, slice(0, place)).stop != place:
            return {}
        found[entry] = slice(start, place + 1)
    return found


def names_of(entry: str, size: int) -> list[str]:
    """The names that `entries_of` understands."""
    return [f"{entry}.{number}" for number in range(size)]


class Frames:
    """Images `[N, H, W, 3]` uint8 that are decoded when NumPy asks for them, and not kept."""

    def __init__(self, shape: tuple[int, ...], load: Any) -> None:
        self.shape = shape
        self._load = load

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        images = self._load()
        return images if dtype is None else images.astype(dtype)


ORIENTATIONS = ("as_is", "rotate180", "flip")


def oriented(images: Any, orientation: str) -> np.ndarray:
    """Images `[N, H, W, 3]` as they are, rotated by 180 degrees, or with the rows turned over (top to bottom)."""
    images = np.asarray(images)
    if orientation == "as_is":
        return images
    return np.ascontiguousarray(images[:, ::-1, ::-1] if orientation == "rotate180" else images[:, ::-1])


@contextlib.contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """A folder to write to that becomes `out` when everything is written; of a failure nothing is left.

    Raises LeRobotError where `out` is there and not empty, or cannot be written (a full disk, no permission).
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        kind = "a folder with something in it" if out.is_dir() else "a file"
        raise LeRobotError(f"{out} is {kind}; name a new or an empty folder, nothing is written over")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, out)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())[:100]
        raise LeRobotError(
            f"cannot write {out}: {reason}; nothing of it is left: free some space or name another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

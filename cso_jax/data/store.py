"""Episodes on disk, in the HDF5 layout that LIBERO and robomimic use: one group `data/demo_<i>` per episode.

data                      attributes: total, num_demos, plus whatever the writer adds (JSON for anything nested)
data/demo_0               attributes: num_samples, init (e.g. "train:push-v3:12"), plus the episode's own
data/demo_0/obs/<key>     [N, ...]
data/demo_0/<array>       [N, ...]: actions, rewards, dones, skills, ...
"""

import dataclasses
import errno
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cso_jax import telemetry

# Errors of the machine, not of the file.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EPERM, errno.EIO, errno.ESTALE)


class StoreError(RuntimeError):
    """An episode file is missing, truncated or not in the layout; the message names the file and what is wrong."""


class StoreBusy(StoreError):
    """An episode file cannot be opened now, though nothing says that it is damaged: locked, or not permitted."""


def opening_error(path: str | Path, error: Exception) -> StoreError:
    """What h5py's error at opening or reading a file means, and what to do about it, in one line."""
    said = " ".join(str(error).split())
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EACCES or "errno = 13" in said:
        return StoreBusy(f"{path}: permission denied; make the file readable for this user (chmod, chown)")
    if "unable to lock file" in said:
        return StoreBusy(
            f"{path}: locked by another process that has it open for writing; wait for it, or set "
            "HDF5_USE_FILE_LOCKING=FALSE where the file system knows no locks"
        )
    if getattr(error, "errno", None) in _PASSING or any(f"errno = {number}" in said for number in _PASSING):
        return StoreBusy(f"{path}: cannot be read now ({said[:120]})")
    return StoreError(f"{path}: not a complete HDF5 file ({said[:120]}); download or copy it again")


@dataclasses.dataclass
class StoredEpisode:
    """N rows of one episode: `observations` and `arrays` map names to `[N, ...]`; `init` names its initial state.

    `attributes` are facts about the whole episode, stored with it: text, numbers, arrays, or anything JSON can hold.
    `source` is the file and the group that the episode was read from, e.g. (push.hdf5, "data/demo_12").
    """

    init: str
    observations: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: tuple[Path, str] | None = None

    def __len__(self) -> int:
        return len(self.arrays["actions"])

    def column(self, key: str) -> tuple[Path, str]:
        """Where the observation `key` lies on disk: file, and dataset in it. Raises StoreError for unsaved episodes."""
        if self.source is None:
            raise StoreError(f"the episode {self.init} was not read from a file")
        path, group = self.source
        return path, f"{group}/obs/{key}"


def write(path: str | Path, episodes: Sequence[StoredEpisode], attributes: Mapping[str, Any]) -> None:
    """Write `episodes` to `path` atomically; a file of that name is replaced only by a complete one.

    Raises OSError (for example: no space left) with the old file, if any, intact.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with h5py.File(temporary, "w") as file:
            data = file.create_group("data")
            data.attrs["total"] = sum(len(episode) for episode in episodes)
            data.attrs["num_demos"] = len(episodes)
            for name, value in attributes.items():
                data.attrs[name] = _encoded(value)
            for number, episode in enumerate(episodes):
                group = data.create_group(f"demo_{number}")
                group.attrs["num_samples"] = len(episode)
                group.attrs["init"] = episode.init
                for name, value in episode.attributes.items():
                    group.attrs[name] = _encoded(value)
                for name, values in episode.arrays.items():
                    group.create_dataset(name, data=values)
                for name, values in episode.observations.items():
                    values = np.asarray(values)
                    # Images: one frame per block, so that a random frame costs one small read.
                    image = values.ndim >= 4  # with a history `[N, frames, H, W, 3]`
                    options = {"chunks": (1, *values.shape[1:]), "compression": "lzf"} if image else {}
                    group.create_dataset(f"obs/{name}", data=values, **options)
            file.flush()
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(path: str | Path, *, images: bool = True) -> tuple[list[StoredEpisode], dict[str, Any]]:
    """The episodes and attributes of a file; without `images`, `[N, H, W, 3]` observations are left out.

    Raises StoreError for a file that is missing, truncated, or not in the layout.
    """
    path = Path(path)
    if not path.exists():
        raise StoreError(f"no episode file {path}")
    try:
        with h5py.File(path, "r") as file:
            data = file["data"]
            attributes = {name: _decoded(value) for name, value in data.attrs.items()}
            numbers = sorted(int(name.removeprefix("demo_")) for name in data)
            episodes = [_read_episode(path, data[f"demo_{number}"], images) for number in numbers]
    except OSError as error:
        found = opening_error(path, error)
        if isinstance(found, StoreBusy):
            raise found from error
        raise StoreError(f"{path} is not a complete episode file: {error}") from error
    except (KeyError, ValueError, RuntimeError) as error:
        raise StoreError(f"{path} is not a complete episode file: {error}") from error
    if sum(len(episode) for episode in episodes) != attributes.get("total"):
        raise StoreError(f"{path} says it holds {attributes.get('total')} rows, but another number was found")
    return episodes, attributes


def _read_episode(path: Path, group: h5py.Group, images: bool) -> StoredEpisode:
    observations = {name: dataset[()] for name, dataset in group["obs"].items() if images or dataset.ndim < 4}
    arrays = {name: dataset[()] for name, dataset in group.items() if isinstance(dataset, h5py.Dataset)}
    rows = {name: len(values) for name, values in [*observations.items(), *arrays.items()]}
    if len(set(rows.values())) != 1 or "actions" not in arrays:
        raise ValueError(f"{group.name}: unequal or missing columns {rows}")
    attributes = {name: _decoded(value) for name, value in group.attrs.items() if name not in ("num_samples", "init")}
    return StoredEpisode(str(group.attrs["init"]), observations, arrays, attributes, (path, group.name.lstrip("/")))


def _encoded(value: Any) -> Any:
    return value if isinstance(value, str | int | float | np.ndarray | np.generic) else json.dumps(value)


def _decoded(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value.item() if isinstance(value, np.generic) else value


def quarantine(path: Path, reason: str) -> Path:
    """Move a damaged file aside, never delete it; says so. Returns where it went."""
    folder = path.parent / "quarantine"
    folder.mkdir(exist_ok=True)
    target = folder / f"{path.name}-{int(time.time() * 1000)}"
    os.replace(path, target)
    telemetry.warn(f"{reason}; moved to {target}")
    return target

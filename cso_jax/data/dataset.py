"""From stored episodes to training batches: chunk windows, observation rows (in memory or on disk), batch order."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cso_jax.data.store import StoreError, opening_error
from cso_jax.envs.protocol import ChunkFrame


class ChunkWindows:
    """Every window of T consecutive actions of every episode; past its end an episode repeats its last action."""

    def __init__(
        self,
        episodes: Sequence[np.ndarray],
        chunk_length: int,
        *,
        frame: ChunkFrame | None = None,
        seen: Sequence[np.ndarray] = (),
    ):
        """`episodes`: arrays `[N_i, A]`. With a `frame` the windows are relative to what was `seen` `[N_i, A]`."""
        self._frame = frame
        self._seen = np.concatenate(seen).astype(np.float32) if frame is not None else None
        self._actions = np.concatenate(episodes).astype(np.float32)
        lengths = np.array([len(actions) for actions in episodes])
        self._last = np.repeat(np.cumsum(lengths) - 1, lengths)
        self._offsets = np.arange(chunk_length)

    def __len__(self) -> int:
        return len(self._actions)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.take(rows)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Chunks `[B, T, A]` that start at `rows` `[B]`."""
        chunks = self._actions[np.minimum(rows[:, None] + self._offsets, self._last[rows][:, None])]
        if self._frame is None or self._seen is None:
            return chunks
        relative: np.ndarray = self._frame.relative(chunks, self._seen[rows])
        return relative


class StoredImages:
    """One image column of many episode files, read row by row: for data sets larger than memory."""

    def __init__(self, parts: Sequence[tuple[Path, str]], *, open_files: int = 200):
        """Look up the length of every part; the images stay on disk.

        `parts`: (file, path of a `[N, H, W, 3]` dataset in it), in row order. At most `open_files` files are open at a
        time. Raises StoreError for a part that is not there.
        """
        self._parts = list(parts)
        self._open_files = open_files
        self._files: collections.OrderedDict[Path, tuple[h5py.File, dict[str, h5py.Dataset]]] = (
            collections.OrderedDict()
        )
        shapes = [self._dataset(part).shape for part in range(len(self._parts))]
        if len({shape[1:] for shape in shapes}) > 1:
            raise StoreError(f"images of different sizes in one column: {sorted({shape[1:] for shape in shapes})}")
        self._image = shapes[0][1:] if shapes else (0, 0, 3)
        self._ends = np.cumsum([shape[0] for shape in shapes])
        self._starts = np.concatenate([[0], self._ends]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows)
        which = np.searchsorted(self._ends, rows, side="right")
        images = np.empty((len(rows), *self._image), np.uint8)
        # File by file, and forwards in each, however the rows are shuffled.
        for place in np.argsort(rows, kind="stable"):
            part = which[place]
            row = int(rows[place] - self._starts[part])
            try:
                self._dataset(part).read_direct(images, np.s_[row], np.s_[int(place)])
            except OSError as error:
                path, name = self._parts[part]
                raise StoreError(
                    f"{path}: image {row} of {name} cannot be read ({str(error)[:80]}); copy the file again"
                ) from error
        return images

    def _dataset(self, part: int) -> h5py.Dataset:
        path, name = self._parts[part]
        try:
            if path not in self._files:
                if len(self._files) >= self._open_files:
                    self._files.popitem(last=False)[1][0].close()
                # No chunk cache: HDF5 keeps one of megabytes for every dataset, and rows in random order rarely meet.
                self._files[path] = (h5py.File(path, "r", rdcc_nbytes=0), {})
            self._files.move_to_end(path)
            file, datasets = self._files[path]
            if name not in datasets:
                datasets[name] = file[name]
        except OSError as error:
            raise opening_error(path, error) from error
        except KeyError as error:
            raise StoreError(f"cannot read {name} of {path}: {error}") from error
        return datasets[name]


class History:
    """A column whose row is the last N rows of another, oldest first; the first of an episode repeats before it."""

    def __init__(self, column: Any, lengths: Sequence[int], history: int):
        """`column`: the rows of all episodes, of the given lengths, one after the other."""
        self._column = column
        self._first = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
        self._offsets = np.arange(1 - history, 1)

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """`[B, N, ...]` for `rows` `[B]`."""
        rows = np.asarray(rows)
        wanted = np.maximum(rows[:, None] + self._offsets, self._first[rows][:, None])
        found = self._column[wanted.ravel()]
        return found.reshape(*wanted.shape, *found.shape[1:])


class Rows:
    """Columns with one row per decision or step, indexed together: arrays, or what is indexed and measured as one."""

    def __init__(self, columns: dict[str, Any]):
        sizes = {name: len(column) for name, column in columns.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"columns must have equally many rows, got {sizes}")
        self.columns = columns
        self.size = next(iter(sizes.values()))

    def __len__(self) -> int:
        return self.size

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: column[rows] for name, column in self.columns.items()}


class BatchOrder:
    """Row numbers of each training step: a stream of epoch permutations, a pure function of seed and step."""

    def __init__(self, batch_size: int, rows: int, seed: int):
        self._batch_size, self._rows, self._seed = batch_size, rows, seed
        self._orders: dict[int, np.ndarray] = {}

    def __call__(self, step: int) -> np.ndarray:
        wanted = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        epochs = wanted // self._rows
        needed = [int(epoch) for epoch in np.unique(epochs)]
        self._orders = {e: self._orders[e] if e in self._orders else self._draw(e) for e in needed}
        result = np.empty(self._batch_size, np.int64)
        for epoch, order in self._orders.items():
            chosen = epochs == epoch
            result[chosen] = order[wanted[chosen] - epoch * self._rows]
        return result

    def _draw(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(self._rows)


def prefetched(make: Callable[[Any], Any], of: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """(x, make(x)) for each x of `of`, each made in a thread while the one before is in use."""
    with ThreadPoolExecutor(1) as executor:
        upcoming: collections.deque[tuple[Any, Future]] = collections.deque()
        for x in of:
            upcoming.append((x, executor.submit(make, x)))
            if len(upcoming) > 1:
                ready, made = upcoming.popleft()
                yield ready, made.result()
        for ready, made in upcoming:
            yield ready, made.result()

"""From stored episodes to training batches: chunk windows, observation rows (in memory or on disk), batch order."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np


class ChunkWindows:
    """Every window of T consecutive actions of every episode; past its end an episode repeats its last action."""

    def __init__(self, episodes: Sequence[np.ndarray], chunk_length: int):
        """`episodes`: arrays `[N_i, A]`."""
        self._actions = np.concatenate(episodes).astype(np.float32)
        lengths = np.array([len(actions) for actions in episodes])
        self._last = np.repeat(np.cumsum(lengths) - 1, lengths)
        self._offsets = np.arange(chunk_length)

    def __len__(self) -> int:
        return len(self._actions)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Chunks `[B, T, A]` that start at `rows` `[B]`."""
        return self._actions[np.minimum(rows[:, None] + self._offsets, self._last[rows][:, None])]


class StoredImages:
    """One image column of many episode files, read row by row: for data sets larger than memory."""

    def __init__(self, parts: Sequence[tuple[Path, str]]):
        """`parts`: (file, path of a `[N, H, W, 3]` dataset in it), in row order."""
        self._files: dict[Path, h5py.File] = {}
        self._datasets = []
        for path, name in parts:
            if path not in self._files:
                self._files[path] = h5py.File(path, "r")
            self._datasets.append(self._files[path][name])
        self._ends = np.cumsum([len(dataset) for dataset in self._datasets])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        which = np.searchsorted(self._ends, rows, side="right")
        starts = np.concatenate([[0], self._ends])
        return np.stack([self._datasets[w][row - starts[w]] for w, row in zip(which, rows, strict=True)])


class Rows:
    """Columns with one row per decision or step, indexed together. A column is an array or `StoredImages`."""

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


def prefetched(make: Callable[[int], Any], first: int, end: int) -> Iterator[tuple[int, Any]]:
    """(step, make(step)) for steps in [first, end), each made in a thread while the one before is in use."""
    with ThreadPoolExecutor(1) as executor:
        upcoming = executor.submit(make, first) if first < end else None
        for step in range(first, end):
            assert upcoming is not None
            current = upcoming.result()
            upcoming = executor.submit(make, step + 1) if step + 1 < end else None
            yield step, current

"""What a server needs of a policy, and what it keeps per robot: task, episode, decisions, history. No JAX here.

Letters: B rows, N observations of a history, T actions of a chunk, A action size.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from cso_jax.runtime.manifest import Manifest

Observation = Mapping[str, np.ndarray]


class ServedPolicy(Protocol):
    """A policy that is ready to act, as `cso_jax.runtime.artifact.load` gives it."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The numbers of rows B that it has been compiled for; a caller pads up to one of them."""

    def warm_up(self) -> None:
        """Compile for, and run once, every size of `batch_sizes`."""

    def act(
        self, observation: Observation, task: np.ndarray, episode_keys: np.ndarray, decision_index: np.ndarray
    ) -> np.ndarray:
        """Chunks `[B, T, A]` float32.

        The entries of `observation` are `[B, ...]`, or `[B, N, ...]` with a history N > 1; `task` int32 `[B]` indexes
        `manifest.tasks`; `episode_keys` uint32 `[B, 2]` and `decision_index` int32 `[B]` fix the draw of each row.
        """


class Row(NamedTuple):
    """One decision that is asked for: the observation without batch, and what fixes its draw."""

    observation: dict[str, np.ndarray]
    task: int
    episode_key: np.ndarray
    decision_index: int


class Session:
    """One robot's episode. Not thread-safe: it belongs to the connection that made it.

    The episode's key is drawn from the seed and the number of the episode, so that a run can be repeated exactly.
    """

    def __init__(self, manifest: Manifest, seed: int | None = None) -> None:
        self.manifest = manifest
        self.seed = time.time_ns() % 2**63 if seed is None else seed
        self.task: int | None = 0 if len(manifest.tasks) == 1 else None
        self.episode = -1
        self.decisions = 0
        self._seen: deque[dict[str, np.ndarray]] = deque(maxlen=manifest.history)
        self.reset()

    def reset(self, episode: int | None = None) -> None:
        """Begin the next episode, or the one of this number: a fresh key, no decisions, no history."""
        self.episode = self.episode + 1 if episode is None else episode
        self.episode_key = episode_key(self.seed, self.episode)
        self.decisions = 0
        self._seen.clear()

    def set_task(self, text: str) -> None:
        """Choose the task by its name or exact sentence. Raises ValueError with the list of tasks."""
        self.task = self.manifest.task_index(text)

    def no_task(self) -> str:
        """Why there is no decision before a task is chosen, with the list of tasks."""
        return f"expected a task, as `task` or `prompt`; one of: {self.manifest.task_list()}"

    def observe(self, observation: Observation) -> None:
        """Take in what the robot sees now: entries as in the manifest, or `[N, ...]` where it keeps the history."""
        entries = {entry.name: np.asarray(observation[entry.name]) for entry in self.manifest.observation}
        first = self.manifest.observation[0]
        if self.manifest.history > 1 and entries[first.name].ndim > len(first.shape):
            self._seen.clear()
            steps = range(self.manifest.history)
            self._seen.extend({name: value[step] for name, value in entries.items()} for step in steps)
        elif not self._seen:
            self._seen.extend([entries] * self.manifest.history)  # as a simulator does at a reset
        else:
            self._seen.append(entries)

    def decide(self) -> Row:
        """The next decision from what was observed last. Raises ValueError where the task is not known."""
        if self.task is None:
            raise ValueError(self.no_task())
        if not self._seen:
            raise ValueError("a decision needs an observation first: send one after each reset")
        stacked = {
            name: self._seen[-1][name] if self.manifest.history == 1 else np.stack([seen[name] for seen in self._seen])
            for name in self._seen[-1]
        }
        row = Row(stacked, self.task or 0, self.episode_key, self.decisions)
        self.decisions += 1
        return row


def episode_key(seed: int, episode: int) -> np.ndarray:
    """A raw PRNG key, uint32 `[2]`: a function of both numbers (negative ones too)."""
    return np.random.SeedSequence([seed % 2**64, episode % 2**64]).generate_state(2, np.uint32)


def padded_size(rows: int, batch_sizes: Sequence[int]) -> int:
    """The smallest compiled size that holds `rows`, the largest one where none does."""
    return next((size for size in sorted(batch_sizes) if size >= rows), max(batch_sizes))


def act_on_rows(policy: ServedPolicy, rows: Sequence[Row]) -> np.ndarray:
    """Chunks `[len(rows), T, A]` of one policy call: the last row is repeated up to a compiled size.

    A row's draw depends on its own key only, so that the repeated ones change nothing. Raises ValueError for more rows
    than the largest compiled size, and for an answer of another shape or with NaN.
    """
    size = padded_size(len(rows), policy.batch_sizes)
    if not 0 < len(rows) <= size:
        raise ValueError(f"a policy call takes 1 to {size} rows, found {len(rows)}")
    padded = [*rows, *[rows[-1]] * (size - len(rows))]
    chunks = policy.act(
        {name: np.stack([row.observation[name] for row in padded]) for name in rows[0].observation},
        np.asarray([row.task for row in padded], np.int32),
        np.stack([row.episode_key for row in padded]).astype(np.uint32),
        np.asarray([row.decision_index for row in padded], np.int32),
    )
    chunks = np.asarray(chunks, np.float32)
    expected = (size, policy.manifest.action.chunk_length, policy.manifest.action.dim)
    if chunks.shape != expected:
        raise ValueError(f"the policy answered actions of shape {chunks.shape}, expected {expected}; export it again")
    return chunks[: len(rows)]

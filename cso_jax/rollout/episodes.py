"""One episode as the pool sees it: what is asked for, its progress in a slot, and the record that is left."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from cso_jax.envs.protocol import ChunkResult, InitState, Observation


class RolloutError(RuntimeError):
    """An episode, or building the environments, failed for good. A traceback from the worker is attached as a note."""


class Interrupted(Exception):
    """The caller's `stop` asked to end the run; the pool stays usable."""


class ActFn(Protocol):
    """The policy over one batch of B decisions. Each output row may depend on the same input row only.

    Given observations `[B, ...]`, keys uint32 `[B, 2]`, decision_index int32 `[B]` and B task names, returns actions
    float32 `[B, E, A]` and further outputs `[B, ...]` to be stored with the decision.
    """

    def __call__(
        self,
        observations: dict[str, np.ndarray],
        keys: np.ndarray,
        decision_index: np.ndarray,
        tasks: tuple[str, ...],
        /,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class EpisodeRequest:
    """One episode to run. `key` uint32 `[2]` is its own sampling key; `tag` is handed back untouched."""

    init: InitState
    key: np.ndarray
    record: bool = False
    tag: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.key, np.ndarray) or self.key.shape != (2,) or self.key.dtype != np.uint32:
            raise ValueError(f"key of {self.init.name} must be a numpy uint32 array of shape [2], got {self.key!r}")


@dataclasses.dataclass(eq=False)
class EpisodeRecord:
    """What one episode of D decisions gave.

    `decisions[name]` `[D, ...]` stacks each further output of the policy, `actions` `[D, E, A]` what was sent to the
    simulator (the last chunk may not have been executed to its end), `observations[key]` `[D, ...]` what the policy
    saw (None unless asked for). `steps` counts simulator steps; `stages` says which stages of the task were done, for
    a task that has some. All but the two times repeat exactly.
    """

    request: EpisodeRequest
    success: bool
    steps: int
    decisions: dict[str, np.ndarray]
    observations: dict[str, np.ndarray] | None
    actions: np.ndarray
    frames: list[np.ndarray]
    physics_s: float
    render_s: float
    stages: tuple[bool, ...] = ()


@dataclasses.dataclass
class PoolStats:
    """Sums since the pool was made. `steps`, `decisions` and times include episodes that had to be started again.

    `rows`: of all policy calls, empty ones too. `worker_s`: the time of `run` times the number of worker processes.
    """

    episodes: int = 0
    steps: int = 0
    decisions: int = 0
    batches: int = 0
    rows: int = 0
    physics_s: float = 0.0
    render_s: float = 0.0
    act_s: float = 0.0
    wait_s: float = 0.0
    run_s: float = 0.0
    worker_s: float = 0.0
    worker_rss: int = 0
    recycled: int = 0

    def as_dict(self) -> dict[str, float]:
        """A copy, to take differences from later. `worker_rss` is the largest seen, in bytes, not a sum."""
        return dataclasses.asdict(self)

    def plus(self, other: "PoolStats") -> "PoolStats":
        """Both together."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        summed = {name: value + theirs[name] for name, value in mine.items()}
        return PoolStats(**summed | {"worker_rss": max(self.worker_rss, other.worker_rss)})


class Episode:
    """An episode in progress, in one slot of one worker."""

    def __init__(self, index: int, request: EpisodeRequest) -> None:
        self.index = index
        self.request = request
        self.observation: Observation = {}
        self.success = False
        self.steps = 0
        self.physics_s = 0.0
        self.render_s = 0.0
        self.stages: tuple[bool, ...] = ()
        self.frames: list[np.ndarray] = []
        self.seen: list[Observation] = []
        self.actions: list[np.ndarray] = []
        self.extras: list[dict[str, np.ndarray]] = []

    def advance(self, result: ChunkResult) -> None:
        self.observation = result.observation
        self.success = self.success or bool(result.success)
        self.steps += result.steps
        self.physics_s += result.physics_s
        self.render_s += result.render_s
        self.stages = result.stages
        self.frames.extend(result.frames)

    def decide(self, action: np.ndarray, extras: dict[str, np.ndarray], *, keep_observation: bool) -> None:
        if keep_observation:
            self.seen.append(self.observation)
        self.actions.append(action)
        self.extras.append(extras)

    def finish(self, *, keep_observations: bool) -> EpisodeRecord:
        actions = np.stack(self.actions) if self.actions else np.zeros((0, 0, 0), np.float32)
        observations = _stack_rows(self.seen) if keep_observations else None
        return EpisodeRecord(
            request=self.request,
            success=self.success,
            steps=self.steps,
            decisions=_stack_rows(self.extras),
            observations=observations,
            actions=actions,
            frames=self.frames,
            physics_s=self.physics_s,
            render_s=self.render_s,
            stages=self.stages,
        )


def _stack_rows(rows: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}

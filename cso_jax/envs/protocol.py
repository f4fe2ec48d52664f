"""What every simulator and robot offers to the rollout loop, and the types that travel between them.

Nothing here imports JAX: worker processes load this module and must start fast and light.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Protocol

import numpy as np

Observation = dict[str, np.ndarray]
"""Low-dimensional entries are float32 `[P]`, camera images uint8 `[H, W, 3]`; the keys are those of `EnvSpec`."""


@dataclasses.dataclass(frozen=True, order=True)
class InitState:
    """An initial state, named so that it can be drawn again exactly: task name and index within its split.

    `split` is "train" (demonstrations, R-SFT, SPO) or "eval" (evaluation only). Use the two subclasses: a function
    that must not see evaluation states takes `TrainInit`, and `require_train` / `require_eval` check it at run time.
    """

    task: str
    index: int
    split: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if not 0 <= self.index < INDEX_LIMIT:
            raise ValueError(f"initial state index of {self.task} must be in [0, {INDEX_LIMIT}), got {self.index}")

    @property
    def name(self) -> str:
        return f"{self.split}:{self.task}:{self.index}"


INDEX_LIMIT = 2**30


@dataclasses.dataclass(frozen=True, order=True)
class TrainInit(InitState):
    """An initial state that learning may use."""

    split: ClassVar[str] = "train"


@dataclasses.dataclass(frozen=True, order=True)
class EvalInit(InitState):
    """An initial state held out for evaluation."""

    split: ClassVar[str] = "eval"


def require_train(init: InitState) -> TrainInit:
    """Return `init` if learning may use it. Raises TypeError otherwise."""
    if not isinstance(init, TrainInit):
        raise TypeError(f"learning uses train initial states only, got {init!r}")
    return init


def require_eval(init: InitState) -> EvalInit:
    """Return `init` if it is held out for evaluation. Raises TypeError otherwise."""
    if not isinstance(init, EvalInit):
        raise TypeError(f"evaluation uses eval initial states only, got {init!r}")
    return init


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """Shapes of one environment: `lowdim` key -> P, `images` key -> (H, W, 3), and the action's dimension A."""

    lowdim: Mapping[str, int]
    images: Mapping[str, tuple[int, int, int]]
    action_dim: int


@dataclasses.dataclass
class ChunkResult:
    """What one executed chunk gave: the observation after it (cameras rendered once, here), and how the episode stands.

    `success` is latched over the episode; `done` is true from success or the horizon on. `steps` counts the simulator
    steps that this chunk really took (a chunk stops early when the episode ends). Times are seconds.
    `frames` holds one uint8 image `[H, W, 3]` every few steps when the reset asked for them, else it is empty.
    """

    observation: Observation
    success: bool
    done: bool
    steps: int
    physics_s: float
    render_s: float
    frames: list[np.ndarray] = dataclasses.field(default_factory=list)


class Environment(Protocol):
    """One simulated robot that can be pointed at any task of its benchmark; never shared between processes."""

    def reset(self, init: InitState, *, record: bool = False) -> ChunkResult:
        """Start an episode from `init` (bit-identical every time); `steps` is 0. `record` collects video frames."""

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Execute `actions` `[E, A]` float32 one simulator step each, until they are used up or the episode ends."""

    def close(self) -> None: ...

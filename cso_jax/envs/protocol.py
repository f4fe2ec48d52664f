"""What every simulator and robot offers to the rollout loop and its module to the rest, and the types in between.

Nothing here imports JAX: worker processes load this module and must start fast and light.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

Observation = dict[str, np.ndarray]
"""Low-dimensional entries are float32 `[P]`, camera images uint8 `[H, W, 3]`; the keys are those of `EnvSpec`.

With `config.env.history` = N > 1 every entry is a stack `[N, ...]` of the last N simulator steps, oldest first.
"""


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


PROPRIO = "proprio"
"""The entry of a jointed arm's observation that its commands are compared with: joints in rad, gripper."""


@dataclasses.dataclass(frozen=True)
class ChunkFrame:
    """How a chunk of absolute commands is told relative to where the robot is when it is decided.

    `key` is a low-dimensional entry `[A]`. In an action's units the robot is at `scale * entry + offset`; a relative
    action is the distance from there in units of `spread`. Where `scale` and `offset` are 0 and `spread` is 1 an action
    stays absolute. What is far from 0 everywhere, and nearly the same over a whole chunk, costs a codebook most of its
    resolution.
    """

    key: str
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    spread: tuple[float, ...]

    def relative(self, chunks: Any, entry: Any) -> Any:
        """Chunks `[B, T, A]` of absolute actions, decided where `entry` `[B, A]` was seen, as relative ones."""
        return (chunks - self._origin(entry)) / np.asarray(self.spread, np.float32)

    def absolute(self, chunks: Any, entry: Any) -> Any:
        """The inverse of `relative`."""
        return chunks * np.asarray(self.spread, np.float32) + self._origin(entry)

    def _origin(self, entry: Any) -> Any:
        if not any(self.scale) and not any(self.offset):
            return 0.0  # whatever the entry is: only the units differ
        return (entry * np.asarray(self.scale, np.float32) + np.asarray(self.offset, np.float32))[:, None, :]


@dataclasses.dataclass(frozen=True)
class EnvSpec:
    """Shapes of one environment: `lowdim` key -> P, `images` key -> (H, W, 3), and the action's dimension A.

    Policies learn and predict their chunks in `frame`, where there is one; the environment executes absolute ones.
    """

    lowdim: Mapping[str, int]
    images: Mapping[str, tuple[int, int, int]]
    action_dim: int
    frame: ChunkFrame | None = None


@dataclasses.dataclass(frozen=True)
class JointLimits:
    """What a robot's joints may do, a value per joint; they are the first actions, in this order.

    Positions in rad, velocity in rad/s, `max_step` in rad per action.
    """

    joints: tuple[str, ...]
    position_low: tuple[float, ...]
    position_high: tuple[float, ...]
    velocity: tuple[float, ...]
    max_step: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class RobotInterface:
    """What programs outside need to know of actions and images, beside their shapes (`EnvSpec`).

    `names`, `low` and `high` have a value per dimension of an action, `units` says in a sentence what they mean,
    `rate_hz` how many actions a second has. `scaled`: an environment's action in [-1, 1] is `low` to `high` in these
    units, linearly (else it is in them already). `orientation` of the images: "upright", or "flipped" (bottom row
    first). `limits` where actions are joint positions.
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    units: str
    rate_hz: float | None
    scaled: bool = False
    orientation: str = "upright"
    limits: JointLimits | None = None


def joint_frame(interface: RobotInterface) -> ChunkFrame:
    """Chunks relative to the measured joints, the entry `PROPRIO` `[A]` in the units of the commands.

    What is no joint (a gripper) stays absolute. The spread is two steps at full speed. Raises ValueError for a robot
    whose commands are no joint positions.
    """
    limits = interface.limits
    if limits is None:
        raise ValueError("commands without joint limits are no joint positions, and cannot be relative to them")
    joints = len(limits.joints)
    rest = len(interface.names) - joints
    low, high = np.asarray(interface.low[:joints]), np.asarray(interface.high[:joints])
    unit = 2.0 / (high - low)
    return ChunkFrame(
        PROPRIO,
        scale=(*unit.tolist(), *(0.0,) * rest),
        offset=(*(-low * unit - 1.0).tolist(), *(0.0,) * rest),
        spread=(*(2.0 * np.asarray(limits.max_step) * unit).tolist(), *(1.0,) * rest),
    )


@dataclasses.dataclass
class ChunkResult:
    """What one executed chunk gave: the observation after it (cameras rendered once, here), and how the episode stands.

    `success` is latched over the episode; `done` is true from success or the horizon on. `steps` counts the simulator
    steps that this chunk really took (a chunk stops early when the episode ends). Times are seconds.
    `frames` holds one uint8 image `[H, W, 3]` every few steps when the reset asked for them, else it is empty.
    `stages` says, for a task of several stages in order, which have been done in this episode; empty for others.
    """

    observation: Observation
    success: bool
    done: bool
    steps: int
    physics_s: float
    render_s: float
    frames: list[np.ndarray] = dataclasses.field(default_factory=list)
    stages: tuple[bool, ...] = ()


class Environment(Protocol):
    """One simulated robot that can be pointed at any task of its benchmark; never shared between processes."""

    def reset(self, init: InitState, *, record: bool = False) -> ChunkResult:
        """Start an episode from `init` (bit-identical every time); `steps` is 0. `record` collects video frames."""

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Execute `actions` `[E, A]` float32 one simulator step each, until they are used up or the episode ends."""

    def close(self) -> None: ...


@runtime_checkable
class Benchmark(Protocol):
    """What the module of a benchmark offers: plain functions and constants, all that is known about it anywhere.

    `settings` is the plain dictionary of `config.env`. The rest of the library reads its `name`, `tasks`, `obs`
    ("pixels" or "state") and `horizon`; every other key is the benchmark's own. Worker processes load the module: it
    imports no JAX, and its simulator only when one is made.
    """

    EXAMPLE: str
    """A config file to start from, for messages."""

    NEUTRAL: tuple[str, ...]
    """Keys of `config.env` (beginnings of them) that change no result: a run may go on with other values."""

    SMOKE: Mapping[str, Any]
    """What a smoke run may have at most, `{"env.horizon": 48, ...}`: in place of the common limits or beside them.

    An episode must leave the scripted expert time enough.
    """

    SMOKE_TASKS: tuple[str, ...]
    """The tasks of a smoke run of more than three tasks; empty: the first two."""

    EVALUATION_STATES: int | None
    """How many evaluation states a task has, after which they repeat with the index; None where they never do."""

    def default_config(self) -> dict[str, Any]:
        """The whole section `env`, and in other sections the values that differ from the common defaults."""

    def problems(self, settings: Mapping[str, Any]) -> list[str]:
        """Everything wrong with the values of `config.env`, one line each; the keys of the defaults are there."""

    def needs_gl(self, settings: Mapping[str, Any]) -> bool:
        """Whether images and videos are drawn with OpenGL."""

    def require_files(self, settings: Mapping[str, Any]) -> dict[str, str]:
        """Raise FileNotFoundError if files are needed that are not there.

        Returns what tells the version of files that more than one source offers, such as `{"assets": hash}`.
        """

    def under_protocol(self, settings: Mapping[str, Any], name: str) -> dict[str, Any]:
        """The settings for an evaluation under another protocol. Raises ValueError for one that there is not."""

    def task_sets(self, settings: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        """Named sets of tasks; every task is in one of them."""

    def sentence(self, settings: Mapping[str, Any], task: str) -> str:
        """What the task asks for, in words."""

    def spec(self, settings: Mapping[str, Any]) -> EnvSpec:
        """Observation and action shapes; builds no simulator. Raises ValueError for impossible settings."""

    def robot_interface(self, settings: Mapping[str, Any]) -> RobotInterface:
        """What actions mean and how images lie, for an exported policy's manifest."""

    def renderer(self, settings: Mapping[str, Any]) -> str:
        """What draws the images of a run ("egl", "osmesa", ...), "none" where no image is drawn."""

    def make_environments(self, settings: dict[str, Any], count: int) -> list[Environment]:
        """`count` environments for one worker process: a top-level function, which travels there by its name.

        What it raises ends the run; what an environment raises later costs its episode another attempt.
        """

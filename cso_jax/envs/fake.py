"""A tiny deterministic environment without a simulator, to exercise the rollout machinery and to compare whole runs.

A point in the plane must reach the goal it sees. The task says on which side the goal lies, the initial state where
exactly, and settings can make chosen initial states misbehave. Settings, all optional:

    horizon (60), tasks (left, right, up), obs ("state" or "pixels"), cameras, image_size (32)
    step_s         (0) seconds that one simulator step takes
    faults         {init.name: {"kind": "die" | "hang" | "raise" | "fatal" | "slow" | "nan", "at_step": n,
                                "marker": path}}
    factory_error  {"type": "ValueError" | "ImportError" | "OSError" | "exit", "message": text, "marker": path}

A fault strikes when the episode of that initial state has made `at_step` steps (default 0: in the reset), in the
scripted expert before its first. With a marker it strikes once: the file is created first, and a fault whose marker
exists does nothing.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from cso_jax.envs.protocol import ChunkResult, Environment, EnvSpec, InitState, Observation, TrainInit
from cso_jax.experts.protocol import Demonstration

ACTION_DIM = 2
SPEED = 0.06  # distance per step at full action
TOLERANCE = 0.1
FRAME_EVERY = 4
FRAME_SIZE = 32
DEFAULT_HORIZON = 60
DEFAULT_TASKS = ("left", "right", "up")
DEFAULT_CAMERAS = ("camera",)
DEFAULT_IMAGE_SIZE = 32
SLOW_S = 0.1
HANG_S = 3600.0

# Where the goals of each task lie, as an angle.
_DIRECTIONS = {"left": np.pi, "right": 0.0, "up": 0.5 * np.pi, "down": 1.5 * np.pi}


class FakeFault(RuntimeError):
    """Raised where the settings ask for an environment that fails."""


class FatalFault(FakeFault):
    """A failure that must not be tried again."""

    fatal = True


def task_sets() -> dict[str, tuple[str, ...]]:
    """Named sets of tasks."""
    return {"all": tuple(_DIRECTIONS), "three": DEFAULT_TASKS}


def task_names(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The tasks that the settings ask for, in order, sets not resolved."""
    return tuple(settings.get("tasks", DEFAULT_TASKS))


EVALUATION_STATES: int | None = None


def require_files(settings: Mapping[str, Any]) -> None:
    """There are none."""


def sentence(task: str) -> str:
    """What the task asks for."""
    return f"go {task}"


def renderer(settings: Mapping[str, Any]) -> str:
    """What draws the images."""
    return "numpy" if _cameras(settings) else "none"


def spec(settings: Mapping[str, Any]) -> EnvSpec:
    """Shapes of the fake environment: `state` `[4]` is position and goal, images where they are on."""
    size = settings.get("image_size", DEFAULT_IMAGE_SIZE)
    images = {camera: (size, size, 3) for camera in _cameras(settings)}
    return EnvSpec(lowdim={"state": 4}, images=images, action_dim=ACTION_DIM)


def make_environments(settings: dict[str, Any], count: int) -> list[Environment]:
    """The factory for worker processes. Raises what `factory_error` asks for."""
    fault = settings.get("factory_error")
    if fault and _strikes(fault):
        if fault["type"] == "exit":
            os._exit(3)
        kinds = {"ValueError": ValueError, "ImportError": ImportError, "OSError": OSError}
        raise kinds[fault["type"]](fault["message"])
    return [FakeEnvironment(settings) for _ in range(count)]


class FakeEnvironment:
    """The point world. Satisfies `cso_jax.envs.protocol.Environment`."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._horizon = int(settings.get("horizon", DEFAULT_HORIZON))
        self._step_s = float(settings.get("step_s", 0.0))
        self._faults = settings.get("faults", {})
        self._init: InitState | None = None
        self._position = np.zeros(2, np.float32)
        self._goal = np.zeros(2, np.float32)
        self._steps = 0
        self._success = False
        self._record = False

    def reset(self, init: InitState, *, record: bool = False) -> ChunkResult:
        """Start from `init`. Raises ValueError for an unknown task."""
        self._position, self._goal = _draw_points(init)
        self._init, self._record = init, record
        self._steps, self._success = 0, False
        self._misbehave()
        frames = [_draw_image(FRAME_SIZE, self._position, self._goal)] if record else []
        return self._result(0, frames)

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Move by each of `actions` `[E, 2]`, clipped to [-1, 1], until success or the horizon."""
        if self._init is None:
            raise RuntimeError("step_chunk was called before reset")
        if actions.ndim != 2 or actions.shape[1] != ACTION_DIM:
            raise ValueError(f"actions must be [E, {ACTION_DIM}], got {list(actions.shape)}")
        frames = []
        taken = 0
        started = time.perf_counter()
        for action in actions:
            if self._success or self._steps >= self._horizon:
                break
            self._position = self._position + np.float32(SPEED) * np.clip(action, -1, 1).astype(np.float32)
            self._steps += 1
            taken += 1
            if self._step_s:
                time.sleep(self._step_s)
            self._misbehave()
            self._success = bool(np.linalg.norm(self._goal - self._position) < TOLERANCE)
            if self._record and self._steps % FRAME_EVERY == 0:
                frames.append(_draw_image(FRAME_SIZE, self._position, self._goal))
        return self._result(taken, frames, time.perf_counter() - started)

    def close(self) -> None:
        """Nothing to release."""

    def observe(self) -> Observation:
        """What the policy sees now."""
        return _observe(self._settings, self._position, self._goal)

    def _result(self, taken: int, frames: list[np.ndarray], physics_s: float = 0.0) -> ChunkResult:
        done = self._success or self._steps >= self._horizon
        started = time.perf_counter()
        observation = self.observe()
        return ChunkResult(observation, self._success, done, taken, physics_s, time.perf_counter() - started, frames)

    def _misbehave(self) -> None:
        fault = self._faults.get(self._init.name) if self._init is not None and self._faults else None
        if fault is None or fault.get("at_step", 0) != self._steps or not _strikes(fault):
            return
        if fault["kind"] == "nan":
            self._position = np.full(2, np.nan, np.float32)
        else:
            _fail(fault["kind"])


def _fail(kind: str) -> None:
    if kind == "die":
        os._exit(1)
    elif kind == "hang":
        time.sleep(HANG_S)
    elif kind == "slow":
        time.sleep(SLOW_S)
    elif kind == "fatal":
        raise FatalFault("told to fail for good")
    else:
        raise FakeFault("told to fail")


def expert_action(state: np.ndarray) -> np.ndarray:
    """Straight to the goal at full speed: action `[2]` float32 for `state` `[4]`."""
    offset = np.asarray(state[2:4] - state[0:2], np.float32)
    return np.clip(offset / np.float32(SPEED), -1, 1).astype(np.float32)


def collect_demo(
    settings: Mapping[str, Any],
    init: TrainInit,
    *,
    noise: float,
    extra_steps: int,
    seed: int,
    store_images: bool | None = None,
    label: str = "executed",
) -> Demonstration | None:
    """Let the scripted expert solve `init` under action noise of standard deviation `noise`, then `extra_steps` more.

    The noise is a function of `seed` and `init`. With `label="expert"` the clean actions take the place of the
    executed ones in `actions`. `store_images` overrides the settings' choice of images or none. Returns None where the
    expert does not succeed before the horizon.
    Raises ValueError for an unknown label.
    """
    if label not in ("executed", "expert"):
        raise ValueError(f"label must be 'executed' or 'expert', got {label!r}")
    if store_images is not None:
        settings = {**settings, "obs": "pixels" if store_images else "state"}
    fault = settings.get("faults", {}).get(init.name)
    if fault is not None and _strikes(fault):
        _fail(fault["kind"])
    horizon = int(settings.get("horizon", DEFAULT_HORIZON))
    position, goal = _draw_points(init)
    rng = np.random.default_rng([seed, list(_DIRECTIONS).index(init.task), init.index])
    observations: list[Observation] = []
    executed: list[np.ndarray] = []
    clean: list[np.ndarray] = []
    success_step = -1
    while len(executed) < horizon if success_step < 0 else len(executed) <= success_step + extra_steps:
        observation = _observe(settings, position, goal)
        clean.append(expert_action(observation["state"]))
        noisy = clean[-1] + noise * rng.standard_normal(ACTION_DIM)
        executed.append(np.clip(noisy, -1, 1).astype(np.float32))
        observations.append(observation)
        position = position + np.float32(SPEED) * executed[-1]
        if success_step < 0 and np.linalg.norm(goal - position) < TOLERANCE:
            success_step = len(executed) - 1
    if success_step < 0:
        return None
    stacked = {name: np.stack([observation[name] for observation in observations]) for name in observations[0]}
    expert_actions = np.stack(clean)
    actions = expert_actions.copy() if label == "expert" else np.stack(executed)
    return Demonstration(init, stacked, actions, expert_actions, success_step)


def _cameras(settings: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(settings.get("cameras", DEFAULT_CAMERAS)) if settings.get("obs", "state") == "pixels" else ()


def _observe(settings: Mapping[str, Any], position: np.ndarray, goal: np.ndarray) -> Observation:
    observation = {"state": np.concatenate([position, goal]).astype(np.float32)}
    for camera in _cameras(settings):
        observation[camera] = _draw_image(settings.get("image_size", DEFAULT_IMAGE_SIZE), position, goal)
    return observation


def _draw_points(init: InitState) -> tuple[np.ndarray, np.ndarray]:
    """Start and goal `[2]` float32 of an initial state; train and eval states never share a draw."""
    if init.task not in _DIRECTIONS:
        raise ValueError(f"unknown task {init.task!r}; the fake benchmark has {', '.join(_DIRECTIONS)}")
    rng = np.random.default_rng([list(_DIRECTIONS).index(init.task), init.index, init.split == "eval"])
    angle = _DIRECTIONS[init.task] + rng.uniform(-0.6, 0.6)
    start = rng.uniform(-0.3, 0.3, 2)
    goal = rng.uniform(0.7, 1.1) * np.array([np.cos(angle), np.sin(angle)])
    return start.astype(np.float32), goal.astype(np.float32)


def _draw_image(size: int, position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """uint8 `[size, size, 3]`: the point red, the goal green, on a square of side 3."""
    image = np.zeros((size, size, 3), np.uint8)
    for channel, point in enumerate((position, goal)):
        column, row = np.clip(((point + 1.5) / 3 * size).astype(int), 0, size - 1)
        image[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2, channel] = 255
    return image


def _strikes(fault: Mapping[str, Any]) -> bool:
    marker = fault.get("marker")
    if marker is None:
        return True
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True

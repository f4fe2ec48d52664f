"""A tiny deterministic environment without a simulator, to exercise the rollout machinery and to compare whole runs.

A point in the plane must reach the goal it sees. The task says on which side the goal lies, the initial state where
exactly, and settings can make chosen initial states misbehave. Settings, all optional:

    horizon (60), tasks (left, right, up), obs ("state" or "pixels"), cameras, image_size (32), history (1)
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

from cso_jax.envs.protocol import Environment, EnvSpec, InitState, Observation, RobotInterface
from cso_jax.envs.slot import Slot
from cso_jax.rules import at_least_one, one_of

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

DIRECTIONS = {"left": np.pi, "right": 0.0, "up": 0.5 * np.pi, "down": 1.5 * np.pi}
"""Where the goals of each task lie, as an angle."""


class FakeFault(RuntimeError):
    """Raised where the settings ask for an environment that fails."""


class FatalFault(FakeFault):
    """A failure that must not be tried again."""

    fatal = True


def under_protocol(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """There are no protocols: raises ValueError."""
    raise ValueError(f"the fake environment has no evaluation protocol {name!r}, only its own")


def task_sets(settings: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Named sets of tasks."""
    return {"all": tuple(DIRECTIONS), "three": DEFAULT_TASKS}


def task_names(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The tasks that the settings ask for, in order, sets not resolved."""
    return tuple(settings.get("tasks", DEFAULT_TASKS))


EXAMPLE = "tests/configs/fake.py"
# Configs of tests start from MetaWorld's defaults: instance_cap is of those.
NEUTRAL = ("video_size", "video_every", "instance_cap")
SMOKE = {"env.image_size": 32, "env.horizon": 48}
SMOKE_TASKS: tuple[str, ...] = ()
EVALUATION_STATES: int | None = None


def default_config() -> dict[str, Any]:
    """Three tasks from states."""
    env = {
        "name": "fake",
        "tasks": ("three",),
        "obs": "state",
        "cameras": DEFAULT_CAMERAS,
        "image_size": DEFAULT_IMAGE_SIZE,
        "horizon": DEFAULT_HORIZON,
        "video_size": FRAME_SIZE,
        "video_every": FRAME_EVERY,
    }
    return {"env": env}


def problems(settings: Mapping[str, Any]) -> list[str]:
    """Everything wrong with the settings, one line each."""
    found = one_of("env.obs", settings.get("obs", "state"), ("pixels", "state"))
    for key in ("image_size", "horizon", "video_size", "video_every", "history"):
        found += at_least_one(f"env.{key}", settings.get(key, 1))
    if settings.get("obs") == "pixels" and not settings.get("cameras", DEFAULT_CAMERAS):
        found.append("config.env.cameras is empty, but config.env.obs is pixels")
    return found


def needs_gl(settings: Mapping[str, Any]) -> bool:
    """It draws with numpy."""
    return False


def require_files(settings: Mapping[str, Any]) -> dict[str, str]:
    """There are none."""
    return {}


def sentence(settings: Mapping[str, Any], task: str) -> str:
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


def robot_interface(settings: Mapping[str, Any]) -> RobotInterface:
    """Moves of the point."""
    return RobotInterface(("x", "y"), (-1.0, -1.0), (1.0, 1.0), f"move of the point, 1 is {SPEED}", None)


def make_environments(settings: dict[str, Any], count: int) -> list[Environment]:
    """The factory for worker processes. Raises what `factory_error` asks for."""
    fault = settings.get("factory_error")
    if fault and strikes(fault):
        if fault["type"] == "exit":
            os._exit(3)
        kinds = {"ValueError": ValueError, "ImportError": ImportError, "OSError": OSError}
        raise kinds[fault["type"]](fault["message"])
    history = int(settings.get("history", 1))
    simulations = [FakeSimulation(settings) for _ in range(count)]
    return [
        Slot(simulation, action_dim=ACTION_DIM, video_every=FRAME_EVERY, last_frame=False, history=history)
        for simulation in simulations
    ]


class FakeSimulation:
    """The point world. Satisfies `cso_jax.envs.slot.SlotSimulation`."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._step_s = float(settings.get("step_s", 0.0))
        self._faults = settings.get("faults", {})
        self._init: InitState | None = None
        self._position: np.ndarray = np.zeros(2, np.float32)
        self._goal: np.ndarray = np.zeros(2, np.float32)
        self._steps = 0

    def horizon(self, task: str) -> int:
        """The settings'; `task` makes no difference."""
        return int(self._settings.get("horizon", DEFAULT_HORIZON))

    def begin(self, init: InitState) -> None:
        """Start from `init`. Raises ValueError for an unknown task."""
        self._position, self._goal = draw_points(init)
        self._init, self._steps = init, 0
        self._misbehave()

    def step(self, action: np.ndarray) -> bool:
        """Move by `action` `[2]`; whether the goal is reached."""
        self._position = self._position + np.float32(SPEED) * action
        self._steps += 1
        if self._step_s:
            time.sleep(self._step_s)
        self._misbehave()
        return bool(np.linalg.norm(self._goal - self._position) < TOLERANCE)

    def observe(self) -> Observation:
        """What the policy sees now."""
        return observe(self._settings, self._position, self._goal)

    def frame(self) -> np.ndarray:
        """The square from above."""
        return draw_image(FRAME_SIZE, self._position, self._goal)

    def end(self) -> None:
        """Nothing to release."""

    def _misbehave(self) -> None:
        fault = self._faults.get(self._init.name) if self._init is not None and self._faults else None
        if fault is None or fault.get("at_step", 0) != self._steps or not strikes(fault):
            return
        if fault["kind"] == "nan":
            self._position = np.full(2, np.nan, np.float32)
        else:
            fail(fault["kind"])


def fail(kind: str) -> None:
    """Do what a fault of this kind does; "nan" is the simulation's own."""
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


def _cameras(settings: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(settings.get("cameras", DEFAULT_CAMERAS)) if settings.get("obs", "state") == "pixels" else ()


def observe(settings: Mapping[str, Any], position: np.ndarray, goal: np.ndarray) -> Observation:
    """What the policy sees of a point at `position` `[2]` with its goal at `goal` `[2]`."""
    observation = {"state": np.concatenate([position, goal]).astype(np.float32)}
    for camera in _cameras(settings):
        observation[camera] = draw_image(settings.get("image_size", DEFAULT_IMAGE_SIZE), position, goal)
    return observation


def draw_points(init: InitState) -> tuple[np.ndarray, np.ndarray]:
    """Start and goal `[2]` float32 of an initial state; train and eval states never share a draw."""
    if init.task not in DIRECTIONS:
        raise ValueError(f"unknown task {init.task!r}; the fake benchmark has {', '.join(DIRECTIONS)}")
    rng = np.random.default_rng([list(DIRECTIONS).index(init.task), init.index, init.split == "eval"])
    angle = DIRECTIONS[init.task] + rng.uniform(-0.6, 0.6)
    start = rng.uniform(-0.3, 0.3, 2)
    goal = rng.uniform(0.7, 1.1) * np.array([np.cos(angle), np.sin(angle)])
    return start.astype(np.float32), goal.astype(np.float32)


def draw_image(size: int, position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """uint8 `[size, size, 3]`: the point red, the goal green, on a square of side 3."""
    image = np.zeros((size, size, 3), np.uint8)
    for channel, point in enumerate((position, goal)):
        column, row = np.clip(((point + 1.5) / 3 * size).astype(int), 0, size - 1)
        image[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2, channel] = 255
    return image


def strikes(fault: Mapping[str, Any]) -> bool:
    """Whether a fault that is due happens: with a marker it does once."""
    marker = fault.get("marker")
    if marker is None:
        return True
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True

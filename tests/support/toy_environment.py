"""A benchmark as docs/how_to_add_an_environment.md asks for it: a cart on a line must stop at a mark."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cso_jax.envs.protocol import Environment, EnvSpec, InitState, Observation, RobotInterface
from cso_jax.envs.slot import Slot
from cso_jax.rules import at_least_one, one_of

REACH = {"near": 0.4, "far": 0.8}  # from the start to the mark, about
STEP = 0.1  # at full action

EXAMPLE = "tests/configs/toy.py"
NEUTRAL = ("paint",)
SMOKE = {"env.horizon": 16}
SMOKE_TASKS: tuple[str, ...] = ()
EVALUATION_STATES: int | None = None


def default_config() -> dict[str, Any]:
    env = {"name": "toy", "tasks": ("both",), "obs": "state", "horizon": 16, "tolerance": 0.15, "paint": "red"}
    return {"env": env, "demos": {"noise": 0.2, "extra_steps": 4}}


def problems(settings: Mapping[str, Any]) -> list[str]:
    found = one_of("env.obs", settings["obs"], ("state",)) + at_least_one("env.horizon", settings["horizon"])
    if settings["tolerance"] > 0.3:
        found.append(f"config.env.tolerance is {settings['tolerance']}: a cart would be at its mark from the start")
    return found


def needs_gl(settings: Mapping[str, Any]) -> bool:
    return False


def require_files(settings: Mapping[str, Any]) -> dict[str, str]:
    """There are none."""
    return {}


def under_protocol(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """There are no protocols: raises ValueError."""
    raise ValueError(f"the toy has no evaluation protocol {name!r}, only its own")


def task_sets(settings: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {"both": tuple(REACH)}


def sentence(settings: Mapping[str, Any], task: str) -> str:
    return f"drive to the {task} mark"


def spec(settings: Mapping[str, Any]) -> EnvSpec:
    return EnvSpec(lowdim={"state": 2}, images={}, action_dim=1)


def robot_interface(settings: Mapping[str, Any]) -> RobotInterface:
    return RobotInterface(names=("drive",), low=(-1.0,), high=(1.0,), units=f"1 is {STEP}", rate_hz=None)


def renderer(settings: Mapping[str, Any]) -> str:
    return "none"


def make_environments(settings: dict[str, Any], count: int) -> list[Environment]:
    return [Slot(Cart(settings), action_dim=1, video_every=4) for _ in range(count)]


class Cart:
    """Satisfies `cso_jax.envs.slot.SlotSimulation`."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.position = self.mark = 0.0

    def horizon(self, task: str) -> int:
        return self.settings["horizon"]

    def begin(self, init: InitState) -> None:
        generator = np.random.default_rng([init.index, init.split == "eval", *init.task.encode()])
        self.position = generator.uniform(-0.1, 0.1)
        self.mark = REACH[init.task] + generator.uniform(-0.1, 0.1)

    def step(self, action: np.ndarray) -> bool:
        self.position += STEP * float(action[0])
        return abs(self.mark - self.position) < self.settings["tolerance"]

    def observe(self) -> Observation:
        return {"state": np.array([self.position, self.mark], np.float32)}

    def frame(self) -> np.ndarray:
        image = np.zeros((8, 32, 3), np.uint8)
        for channel, place in enumerate((self.position, self.mark)):
            image[2:6, int(np.clip(16 + 16 * place, 0, 31)), channel] = 255
        return image

    def end(self) -> None:
        """Nothing to give back."""

"""What is known about MetaWorld (v3 tasks), as `cso_jax.envs.protocol.Benchmark` lists it.

A slot borrows a simulator of the right task for one episode at a time, from a pool that all slots of its process share.
Cameras are drawn once per chunk, when the policy looks.
"""

from collections.abc import Mapping
from typing import Any

from cso_jax.envs.gl import configure_gl
from cso_jax.envs.metaworld.environment import HAND_DIM, MetaWorldSimulation, Observer, process_pool
from cso_jax.envs.metaworld.settings import MAX_HORIZON, Settings, problems
from cso_jax.envs.metaworld.simulator import ACTION_DIM, STATE_DIM
from cso_jax.envs.metaworld.simulator import task_sets as all_task_sets
from cso_jax.envs.protocol import Environment, EnvSpec, RobotInterface
from cso_jax.envs.slot import Slot

__all__ = [
    "EVALUATION_STATES",
    "EXAMPLE",
    "NEUTRAL",
    "SMOKE",
    "SMOKE_TASKS",
    "default_config",
    "make_environments",
    "needs_gl",
    "problems",
    "renderer",
    "require_files",
    "robot_interface",
    "sentence",
    "spec",
    "task_sets",
]

EXAMPLE = "configs/quickstart.py"
NEUTRAL = ("instance_cap", "video_size", "video_every")
SMOKE = {"env.image_size": 32, "env.horizon": 150}  # the longest of these tasks takes its expert about 100 steps
SMOKE_TASKS: tuple[str, ...] = ("reach-v3", "button-press-topdown-v3", "drawer-close-v3")
EVALUATION_STATES: int | None = None


def default_config() -> dict[str, Any]:
    """ML45 from pixels, as in the paper; the other defaults are the paper's for MetaWorld."""
    env = {
        "name": "metaworld",
        "tasks": ("ML45-train",),  # task names, or a set: ML45-train, ML45-test, MT50
        "obs": "pixels",  # or "state": no camera, no GL library
        "cameras": ("corner2",),
        "image_size": 128,
        "horizon": MAX_HORIZON,  # simulator steps
        "render": {"shadows": False, "reflections": False, "msaa": 0},
        "instance_cap": 96,  # idle simulators kept per worker
        "video_size": 160,
        "video_every": 4,  # simulator steps between frames
    }
    return {"env": env}


def needs_gl(settings: Mapping[str, Any]) -> bool:
    """MuJoCo draws with it."""
    return True


def require_files(settings: Mapping[str, Any]) -> dict[str, str]:
    """MetaWorld's package brings everything."""
    return {}


def under_protocol(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """There are no protocols: raises ValueError."""
    raise ValueError(f"MetaWorld has no evaluation protocol {name!r}, only its own")


def sentence(settings: Mapping[str, Any], task: str) -> str:
    """The task's name in words."""
    return task.removesuffix("-v3").replace("-", " ")


def task_sets(settings: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """MetaWorld's own sets."""
    return all_task_sets()


def spec(settings: Mapping[str, Any]) -> EnvSpec:
    """Observation and action shapes under `settings`; builds no simulator."""
    chosen = Settings.of(settings)
    if chosen.obs == "state":
        return EnvSpec({"state": STATE_DIM}, {}, ACTION_DIM)
    size = (chosen.image_size, chosen.image_size, 3)
    return EnvSpec({"hand": HAND_DIM}, dict.fromkeys(chosen.cameras, size), ACTION_DIM)


def robot_interface(settings: Mapping[str, Any]) -> RobotInterface:
    """Moves of the hand's goal; MetaWorld makes five simulator steps of 2.5 ms per action."""
    return RobotInterface(
        names=("x", "y", "z", "gripper"),
        low=(-1.0,) * ACTION_DIM,
        high=(1.0,) * ACTION_DIM,
        units="x, y, z: move of the hand's goal, 1 is 1 cm; gripper: force, above 0 closes",
        rate_hz=80.0,
    )


def renderer(settings: Mapping[str, Any]) -> str:
    """What draws the images ("egl", "osmesa", ...), "none" for state observations.

    Raises RuntimeError if images are wanted and nothing can draw them.
    """
    return configure_gl("pixels") if Settings.of(settings).obs == "pixels" else "none"


def make_environments(settings: Mapping[str, Any], count: int) -> list[Environment]:
    """`count` slots for this process. They share their simulators, which are made when first needed."""
    chosen = Settings.of(settings)
    pool = process_pool(chosen.instance_cap)
    observer = Observer(chosen, slots=count)
    return [
        Slot(
            MetaWorldSimulation(chosen, pool, observer),
            action_dim=ACTION_DIM,
            video_every=chosen.video_every,
            history=chosen.history,
        )
        for _ in range(count)
    ]

"""What is known about the tabletop (the paper's five real-robot tasks), as `cso_jax.envs.protocol.Benchmark` lists it.

Cameras are drawn once per chunk, when the policy looks.
"""

from collections.abc import Mapping
from typing import Any

from cso_jax.envs.gl import configure_gl
from cso_jax.envs.protocol import Environment, EnvSpec, JointLimits, RobotInterface, joint_frame
from cso_jax.envs.slot import Slot
from cso_jax.envs.tabletop import package
from cso_jax.envs.tabletop.environment import Observer, TabletopSimulation
from cso_jax.envs.tabletop.robots import ACTION_DIM, PROPRIO_DIM, ROBOTS
from cso_jax.envs.tabletop.settings import CAMERAS, Settings, problems
from cso_jax.envs.tabletop.simulator import STATE_DIM
from cso_jax.envs.tabletop.tasks import TASKS, task_named

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

EXAMPLE = "configs/tabletop_state.py"
NEUTRAL = ("video_size", "video_every")
SMOKE = {"env.image_size": 32, "env.horizon": 240}
SMOKE_TASKS: tuple[str, ...] = ("press-button", "cube-in-bowl")
EVALUATION_STATES: int | None = None


def default_config() -> dict[str, Any]:
    """All five tasks from pixels; 50 demonstrations per task, as in the paper's Appendix C."""
    env = {
        "name": "tabletop",
        "tasks": ("all",),
        "robot": "viperx",  # or "piper"
        "obs": "pixels",  # or "state": no camera, no GL library
        "cameras": CAMERAS,
        "image_size": 128,
        "horizon": 400,  # control steps at most; tasks of one stage end sooner
        "control_hz": 20,  # actions per second
        "chunks": "relative",  # what policies predict: angles from where the joints are; or "absolute"
        "render": {"shadows": False, "reflections": False, "msaa": 0},
        "video_size": 160,
        "video_every": 4,  # control steps between frames
    }
    # Actions are absolute angles: 0.01 of the waist's range is 5 mm at the fingertips.
    return {"env": env, "demos": {"per_task": 50, "noise": 0.005, "label": "expert"}}


def needs_gl(settings: Mapping[str, Any]) -> bool:
    """MuJoCo draws with it."""
    return True


def require_files(settings: Mapping[str, Any]) -> dict[str, str]:
    """Raises FileNotFoundError, with the command to install it, if the arm's model is not there."""
    package.arm_file(Settings.of(settings).robot)
    return {}


def under_protocol(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """There are no protocols: raises ValueError."""
    raise ValueError(f"the tabletop has no evaluation protocol {name!r}, only its own")


def task_sets(settings: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """One set of all tasks."""
    return {"all": tuple(TASKS)}


def sentence(settings: Mapping[str, Any], task: str) -> str:
    """What the task asks for."""
    return task_named(task).sentence


def spec(settings: Mapping[str, Any]) -> EnvSpec:
    """Observation and action shapes under `settings`; builds no simulator."""
    chosen = Settings.of(settings)
    frame = joint_frame(robot_interface(settings)) if chosen.chunks == "relative" else None
    if chosen.obs == "state":
        return EnvSpec({"proprio": PROPRIO_DIM, "state": STATE_DIM}, {}, ACTION_DIM, frame)
    size = (chosen.image_size, chosen.image_size, 3)
    return EnvSpec({"proprio": PROPRIO_DIM}, dict.fromkeys(chosen.cameras, size), ACTION_DIM, frame)


def robot_interface(settings: Mapping[str, Any]) -> RobotInterface:
    """Absolute joint angles and the opening of the gripper, with the limits that commands have here."""
    chosen = Settings.of(settings)
    robot = ROBOTS[chosen.robot]
    return RobotInterface(
        names=(*robot.joints, "gripper"),
        low=(*robot.lower, 0.0),
        high=(*robot.upper, 1.0),
        units="joints: rad, absolute; gripper: opening, 0 closed, 1 open",
        rate_hz=float(chosen.control_hz),
        scaled=True,
        limits=JointLimits(
            joints=robot.joints,
            position_low=robot.lower,
            position_high=robot.upper,
            velocity=robot.speed,
            max_step=tuple(speed / chosen.control_hz for speed in robot.speed),
        ),
    )


def renderer(settings: Mapping[str, Any]) -> str:
    """What draws the images ("egl", "osmesa", ...), "none" for state observations.

    Raises RuntimeError if images are wanted and nothing can draw them.
    """
    return configure_gl("pixels") if Settings.of(settings).obs == "pixels" else "none"


def make_environments(settings: Mapping[str, Any], count: int) -> list[Environment]:
    """`count` slots for this process. Raises FileNotFoundError if the arm's model is not there."""
    chosen = Settings.of(settings)
    package.arm_file(chosen.robot)
    observer = Observer(chosen)
    return [
        Slot(
            TabletopSimulation(chosen, observer),
            action_dim=ACTION_DIM,
            video_every=chosen.video_every,
            history=chosen.history,
        )
        for _ in range(count)
    ]

"""What is known about LIBERO (130 tasks in five suites), as `cso_jax.envs.protocol.Benchmark` lists it.

Slots of a process share compiled scenes; cameras are drawn once per chunk, when the policy looks. Which initial state
an episode starts from, and what the policy sees of it first, is the protocol's: see `protocols`.
"""

from collections.abc import Mapping
from typing import Any

from cso_jax.envs.gl import configure_gl
from cso_jax.envs.libero import pro
from cso_jax.envs.libero.assets import assets_folder, assets_version
from cso_jax.envs.libero.control import ACTION_DIM
from cso_jax.envs.libero.environment import LiberoSimulation, Observer, image_key, process_scenes
from cso_jax.envs.libero.files import STATES_PER_TASK, demonstration_start, language, suite_of
from cso_jax.envs.libero.files import task_sets as all_task_sets
from cso_jax.envs.libero.protocols import PROTOCOLS
from cso_jax.envs.libero.settings import Settings, problems
from cso_jax.envs.libero.state import STATE_DIM
from cso_jax.envs.protocol import ChunkFrame, Environment, EnvSpec, RobotInterface
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
    "under_protocol",
]

EXAMPLE = "configs/libero_object_state.py"
NEUTRAL = ("libero.assets", "libero.datasets", "libero.scenes", "video_size", "video_every")
# Episodes are longer than MetaWorld's and steps dearer, so there are fewer of them.
SMOKE = {
    "env.image_size": 32,
    "env.horizon": 400,
    "rollout.slots": 4,
    "demos.per_task": 2,
    "rsft.strikes": 2,
    "rsft.max_rollouts_per_task": 2,
    "spo.iterations": 1,
    "spo.group_size": 2,
    "spo.probe": 2,
    "spo.groups": 1,
    "spo.max_groups": 2,
    "spo.wave_groups": 2,
    "evaluation.episodes_per_task": 1,
}
SMOKE_TASKS: tuple[str, ...] = ()
EVALUATION_STATES: int | None = STATES_PER_TASK  # every seed has the same; only fixtures differ


def default_config() -> dict[str, Any]:
    """A suite from pixels, as in the paper (section 5, Appendix E); QueST's values where it has none."""
    options = {
        "assets": "",  # folder of meshes and textures; empty: LIBERO_ASSETS, the packages, LIBERO's download
        "protocol": "settle",  # or "quest_compat", "openpi": what happens around the first observation
        "physics": "official",  # or "fast": twice the steps, from train initial states; evaluation is always official
        "render": "official",  # or "fast": no multisampling, no reflections
        "decimate": 0,  # triangles that "fast" leaves per visual mesh; 0: all
        "proprio": "joints",  # or "joints_ee": the position of the hand too, as QueST; "ee8": no joints, as LeRobot
        "train_states": "placements",  # or "demonstrations": their initial states, from env.libero.datasets
        "datasets": "",
        "joint_noise": 0.0,  # rad, of the arm in train placements; the benchmark's states have about 0.02
        "spread": (),  # units of the chunks that policies predict, by action dimension; (): the actions' own
        "scenes": 12,  # compiled scenes kept per worker
    }
    env = {
        "name": "libero",
        # Task names, or suites: libero_{spatial,object,goal,long,90}; long is also called 10.
        "tasks": ("libero_10",),
        "obs": "pixels",  # or "state": no camera, no GL library
        "cameras": ("agentview", "robot0_eye_in_hand"),
        "image_size": 128,
        "horizon": 600,  # simulator steps
        "video_size": 160,
        "video_every": 4,  # simulator steps between frames
        "libero": options,
    }
    return {"env": env, "demos": {"per_task": 50}, "rollout": {"slots": 5, "start_timeout_s": 300.0}}


def needs_gl(settings: Mapping[str, Any]) -> bool:
    """MuJoCo draws with it."""
    return True


def sentence(settings: Mapping[str, Any], task: str) -> str:
    """What the task asks for, as LIBERO's benchmark puts it, or the variant's description."""
    options = Settings.of(settings).libero
    return pro.sentence(pro.folder(options.pro), task, options.variant) if options.variant else language(task)


def require_files(settings: Mapping[str, Any]) -> dict[str, str]:
    """Look for LIBERO's meshes and textures, and for the recorded first states where training starts from those.

    Also for the files of a variant. Returns the version of the former (`assets.assets_version`).

    Raises FileNotFoundError, saying where it looked, if they are nowhere to be found, ValueError for a file of
    demonstrations without usable states.
    """
    chosen = Settings.of(settings).libero
    folder = assets_folder(chosen.assets)
    if chosen.train_states == "demonstrations":
        for each in _tasks(settings):
            demonstration_start(chosen.datasets, each, 0)
    if chosen.variant:
        for each in _tasks(settings):
            pro.states(pro.folder(chosen.pro), each, chosen.variant)
    return {"libero-assets": assets_version(folder)}


def _tasks(settings: Mapping[str, Any]) -> list[str]:
    return [each for task in settings.get("tasks", ()) for each in all_task_sets().get(task, (task,))]


def under_protocol(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The settings with another of `protocols.PROTOCOLS`, or with a suite of LIBERO-PRO: "pro:libero_object_swap".

    Raises ValueError for another name, or a suite that is not of the tasks.
    """
    options = dict(settings.get("libero", {}))
    if name in PROTOCOLS:
        return {**settings, "libero": {**options, "protocol": name}}
    kind, _, suite = name.partition(":")
    if kind != "pro":
        raise ValueError(f"LIBERO's evaluation protocols are {', '.join(PROTOCOLS)} and pro:SUITE; got {name!r}")
    variant = pro.variant_of(suite)
    others = [task for task in _tasks(settings) if suite_of(task) != suite.removesuffix(f"_{variant}")]
    if others:
        raise ValueError(f"{suite} is a variant of other tasks than {others[0]} ({suite_of(others[0])})")
    return {**settings, "libero": {**options, "variant": variant}}


def task_sets(settings: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The suites, by their names."""
    return all_task_sets()


def spec(settings: Mapping[str, Any]) -> EnvSpec:
    """Observation and action shapes under `settings`; builds no simulator."""
    chosen = Settings.of(settings)
    lowdim = {"joint_states": 7, "gripper_states": 2}
    if chosen.obs == "state" or chosen.libero.proprio == "joints_ee":
        lowdim["ee_pos"] = 3
    zeros = (0.0,) * ACTION_DIM
    spread = chosen.libero.spread
    frame = ChunkFrame("gripper_states", scale=zeros, offset=zeros, spread=spread) if spread else None
    if chosen.obs == "state":
        return EnvSpec({**lowdim, "state": STATE_DIM}, {}, ACTION_DIM, frame)
    if chosen.libero.proprio == "ee8":
        lowdim = {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2}
    size = (chosen.image_size, chosen.image_size, 3)
    return EnvSpec(lowdim, {image_key(camera): size for camera in chosen.cameras}, ACTION_DIM, frame)


def robot_interface(settings: Mapping[str, Any]) -> RobotInterface:
    """robosuite's OSC_POSE and gripper at 20 Hz; images with the bottom row first, as in LIBERO's published data."""
    return RobotInterface(
        names=("x", "y", "z", "rotation_x", "rotation_y", "rotation_z", "gripper"),
        low=(-1.0,) * ACTION_DIM,
        high=(1.0,) * ACTION_DIM,
        units="x, y, z: move of the hand, 1 is 5 cm; rotation: axis times angle, 1 is 0.5 rad; gripper: above 0 closes",
        rate_hz=20.0,
        orientation="flipped",
    )


def renderer(settings: Mapping[str, Any]) -> str:
    """What draws the images, and how ("egl official", "osmesa fast 600", ...), "none" for state observations.

    Raises RuntimeError if images are wanted and nothing can draw them.
    """
    chosen = Settings.of(settings)
    if chosen.obs == "state":
        return "none"
    triangles = f" {chosen.libero.decimate}" if chosen.libero.decimate else ""
    return f"{configure_gl('pixels')} {chosen.libero.render}{triangles}"


def make_environments(settings: Mapping[str, Any], count: int) -> list[Environment]:
    """`count` slots for this process. They share their scenes, which are compiled when first needed."""
    chosen = Settings.of(settings)
    scenes = process_scenes(chosen.libero, chosen.obs != "state")
    observer = Observer(chosen)
    return [
        Slot(
            LiberoSimulation(chosen, scenes, observer),
            action_dim=ACTION_DIM,
            video_every=chosen.video_every,
            history=chosen.history,
        )
        for _ in range(count)
    ]

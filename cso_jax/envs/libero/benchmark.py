"""LIBERO (130 tasks in five suites) behind the environment protocol: camera or state observations, videos.

Slots of a process share compiled scenes; cameras are drawn once per chunk, when the policy looks. Which initial state
an episode starts from, and what the policy sees of it first, is the protocol's: see `libero_protocols`.

Camera images keep robosuite's convention, the bottom row first, as LIBERO's published data has them. Only videos are
turned over. Observation keys are those of the published data.
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from cso_jax.envs.gl import RendererCache, configure_gl
from cso_jax.envs.libero.control import ACTION_DIM
from cso_jax.envs.libero.culling import culled
from cso_jax.envs.libero.files import STATES_PER_TASK, assets_folder, demonstration_start, language, task_sets
from cso_jax.envs.libero.meshes import simplified
from cso_jax.envs.libero.protocols import PROTOCOLS, Start, horizon
from cso_jax.envs.libero.scenes import SceneShare
from cso_jax.envs.libero.simulator import Scene, Snapshot
from cso_jax.envs.libero.state import STATE_DIM, state_vector
from cso_jax.envs.protocol import (
    ChunkResult,
    Environment,
    EnvSpec,
    EvalInit,
    InitState,
    Observation,
    TrainInit,
    require_train,
)

__all__ = [
    "LiberoEnvironment",
    "Observer",
    "Options",
    "Settings",
    "image_key",
    "make_environments",
    "process_scenes",
    "renderer",
    "require_files",
    "sentence",
    "spec",
    "start_of_training",
    "task_sets",
]

CAMERAS = ("agentview", "robot0_eye_in_hand", "frontview", "sideview", "birdview", "galleryview", "canonical_agentview")
"""Cameras of LIBERO's scenes; the published data has the first two."""

_VIDEO_CAMERA = "agentview"
# What robosuite's own images are drawn with: no light of LIBERO's scenes casts a shadow.
_PROFILES: dict[str, dict[str, Any]] = {
    "official": {"shadows": False, "reflections": True, "msaa": 4},
    "fast": {"shadows": False, "reflections": False, "msaa": 0},
}
_COLLISION_GEOMS = 0

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    """`config.env.libero`: where files are, the protocol, how images are drawn, how many scenes a process keeps."""

    assets: str = ""
    protocol: str = "settle"
    render: str = "official"
    decimate: int = 0
    proprio: str = "joints"
    train_states: str = "placements"
    datasets: str = ""
    joint_noise: float = 0.0
    scenes: int = 12


@dataclasses.dataclass(frozen=True)
class Settings:
    """What this module reads of `config.env`; sizes in pixels, horizon and video_every in simulator steps."""

    obs: str = "pixels"
    cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    image_size: int = 128
    horizon: int = 600
    video_size: int = 128
    video_every: int = 4
    libero: Options = dataclasses.field(default_factory=Options)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Settings":
        """Read a plain mapping; keys that mean nothing here are ignored. Raises ValueError for impossible values."""
        known = {field.name for field in dataclasses.fields(cls)}
        values = {key: value for key, value in settings.items() if key in known}
        options = dict(values.pop("libero", {}))
        unknown = sorted(set(options) - {field.name for field in dataclasses.fields(Options)})
        if unknown:
            names = ", ".join(field.name for field in dataclasses.fields(Options))
            raise ValueError(f"config.env.libero takes {names}, got {', '.join(unknown)}")
        if "cameras" in values:
            values["cameras"] = tuple(values["cameras"])
        made = cls(**values, libero=Options(**options))
        made._check()
        return made

    def _check(self) -> None:
        choices = {
            "obs": (self.obs, ("pixels", "state")),
            "libero.protocol": (self.libero.protocol, tuple(PROTOCOLS)),
            "libero.render": (self.libero.render, tuple(_PROFILES)),
            "libero.proprio": (self.libero.proprio, ("joints", "joints_ee")),
            "libero.train_states": (self.libero.train_states, ("placements", "demonstrations")),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        positive = {name: getattr(self, name) for name in ("image_size", "horizon", "video_size", "video_every")}
        for name, number in {**positive, "libero.scenes": self.libero.scenes}.items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if self.libero.decimate < 0 or (self.libero.decimate and self.libero.render != "fast"):
            raise ValueError(
                f"libero.decimate must be 0, or with libero.render=fast a number of triangles; got "
                f"{self.libero.decimate} with render={self.libero.render}"
            )
        unknown = [camera for camera in self.cameras if camera not in CAMERAS]
        if unknown or not self.cameras:
            raise ValueError(f"cameras must be some of {', '.join(CAMERAS)}, got {', '.join(self.cameras) or 'none'}")
        if self.libero.train_states == "demonstrations" and not self.libero.datasets:
            raise ValueError("libero.train_states=demonstrations needs libero.datasets, the folder of the HDF5 files")


def sentence(task: str) -> str:
    """What the task asks for, as LIBERO's benchmark puts it."""
    return language(task)


EVALUATION_STATES: int | None = STATES_PER_TASK  # every seed has the same; only fixtures differ


def require_files(settings: Mapping[str, Any]) -> None:
    """Look for LIBERO's meshes and textures, and for the recorded first states where training starts from those.

    Raises FileNotFoundError, saying where it looked, if they are nowhere to be found, ValueError for a file of
    demonstrations without usable states.
    """
    chosen = Settings.of(settings).libero
    assets_folder(chosen.assets)
    if chosen.train_states == "demonstrations":
        for task in settings.get("tasks", ()):
            for each in task_sets().get(task, (task,)):
                demonstration_start(chosen.datasets, each, 0)


def image_key(camera: str) -> str:
    """The observation key of a camera: "agentview_rgb", "eye_in_hand_rgb", ..."""
    return camera.removeprefix("robot0_") + "_rgb"


def spec(settings: Mapping[str, Any]) -> EnvSpec:
    """Observation and action shapes under `settings`; builds no simulator."""
    chosen = Settings.of(settings)
    lowdim = {"joint_states": 7, "gripper_states": 2}
    if chosen.obs == "state" or chosen.libero.proprio == "joints_ee":
        lowdim["ee_pos"] = 3
    if chosen.obs == "state":
        return EnvSpec({**lowdim, "state": STATE_DIM}, {}, ACTION_DIM)
    size = (chosen.image_size, chosen.image_size, 3)
    return EnvSpec(lowdim, {image_key(camera): size for camera in chosen.cameras}, ACTION_DIM)


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
    """`count` slot environments for this process. They share their scenes, which are compiled when first needed."""
    chosen = Settings.of(settings)
    scenes = process_scenes(chosen.libero.scenes, chosen.libero.assets)
    observer = Observer(chosen)
    return [LiberoEnvironment(chosen, scenes, observer) for _ in range(count)]


def start_of_training(settings: Settings, scene: Scene, init: TrainInit) -> None:
    """Put a train initial state into `scene` as an episode of a rollout starts from it, for demonstrations.

    Raises what `Start.begin` raises.
    """
    options = settings.libero
    protocol = dataclasses.replace(PROTOCOLS[options.protocol], stale_first_observation=False)
    Start(protocol, options.train_states, options.datasets, options.joint_noise).begin(
        scene, require_train(init), lambda scene: {}
    )


@functools.cache
def process_scenes(capacity: int, assets: str) -> SceneShare:
    """The scenes that everything in this process with the same settings shares."""
    return SceneShare(capacity, {"libero": {"assets": assets}})


class Observer:
    """Turns a scene into what the policy sees, and into video frames."""

    def __init__(self, settings: Settings) -> None:
        """Raises RuntimeError if camera images are wanted and nothing can draw them."""
        configure_gl(settings.obs)
        self._settings = settings

    def observe(self, scene: Scene) -> Observation:
        """The policy's observation of the scene as it is now, with cameras drawn if they are part of it."""
        seen: Observation = {
            "joint_states": scene.joint_states().astype(np.float32),
            "gripper_states": scene.gripper_states().astype(np.float32),
        }
        if self._settings.obs == "state" or self._settings.libero.proprio == "joints_ee":
            seen["ee_pos"] = scene.hand_pose()[0].astype(np.float32)
        if self._settings.obs == "state":
            return {**seen, "state": state_vector(scene)}
        size = self._settings.image_size
        images = {image_key(camera): self._draw(scene, camera, size, False) for camera in self._settings.cameras}
        return {**seen, **images}

    def frame(self, scene: Scene) -> np.ndarray | None:
        """A video frame `[V, V, 3]` uint8, the top row first, None if this machine cannot draw."""
        if self._settings.obs == "state" and not _can_draw():
            return None
        return self._draw(scene, _VIDEO_CAMERA, self._settings.video_size, True)

    def _draw(self, scene: Scene, camera: str, size: int, upright: bool) -> np.ndarray:
        options = self._settings.libero
        largest = max(self._settings.image_size, self._settings.video_size)
        drawer = _process_renderers(options.scenes, largest, options.render, options.decimate)
        scene.update_visuals()
        made = drawer.get(scene.task, scene.model)
        with culled(scene.model, scene.data, camera, reflections=_PROFILES[options.render]["reflections"]):
            return made.render(scene.model, scene.data, camera, size, upright=upright)


class LiberoEnvironment:
    """One slot: runs one episode at a time in a scene that it shares with the other slots of its process."""

    def __init__(self, settings: Settings, scenes: SceneShare, observer: Observer) -> None:
        self.parked: Snapshot | None = None
        self._settings = settings
        self._scenes = scenes
        self._observer = observer
        options = settings.libero
        self._start = Start(PROTOCOLS[options.protocol], options.train_states, options.datasets, options.joint_noise)
        self._task: str | None = None
        self._horizon = 0
        self._record = False
        self._step = 0

    def reset(self, init: InitState, *, record: bool = False) -> ChunkResult:
        """Start an episode from `init`.

        Raises ValueError for an unknown task, TypeError for an initial state without a split.
        """
        if not isinstance(init, TrainInit | EvalInit):
            raise TypeError(f"an initial state is a TrainInit or an EvalInit, got {init!r}")
        self.close()
        self._horizon = horizon(self._start.protocol, init.task, self._settings.horizon)
        start = time.perf_counter()
        scene = self._scenes.enter(self, init.task)
        self._task, self._record, self._step = init.task, record, 0
        first = self._start.begin(scene, init, self._observer.observe)
        return self._result(scene, False, False, 0, time.perf_counter() - start, [], 0.0, first)

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Execute `actions` `[E, 7]`, clipped to [-1, 1], until they are used up, success, or the horizon.

        Raises ValueError for another shape or numbers that are not finite (then nothing was executed), RuntimeError
        if no episode is under way.
        """
        actions = np.asarray(actions, np.float32)
        if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or len(actions) == 0:
            raise ValueError(f"actions must have shape [E, {ACTION_DIM}] with E > 0, got {list(actions.shape)}")
        if not np.isfinite(actions).all():
            raise ValueError("actions hold numbers that are not finite")
        if self._task is None:
            raise RuntimeError("no episode is under way: it has ended, or was never reset")
        start = time.perf_counter()
        scene = self._scenes.enter(self, self._task)
        success = done = False
        frames: list[np.ndarray] = []
        drawing, taken = 0.0, 0
        for action in np.clip(actions, -1.0, 1.0):
            success = scene.step(action)
            taken += 1
            self._step += 1
            done = success or self._step >= self._horizon
            if self._record and not done and self._step % self._settings.video_every == 0:
                drawing += self._film(scene, frames)
            if done:
                break
        physics = time.perf_counter() - start - drawing
        return self._result(scene, success, done, taken, physics, frames, drawing, None)

    def close(self) -> None:
        """End the episode under way, if any."""
        self._scenes.leave(self)
        self._task = None

    def _result(
        self,
        scene: Scene,
        success: bool,
        done: bool,
        steps: int,
        physics_s: float,
        frames: list[np.ndarray],
        drawing: float,
        seen: Observation | None,
    ) -> ChunkResult:
        start = time.perf_counter()
        if seen is None:
            seen = self._observer.observe(scene)
        drawing += time.perf_counter() - start
        if self._record and (done or steps == 0):
            drawing += self._film(scene, frames)
        if done:
            self.close()
        return ChunkResult(seen, success, done, steps, physics_s, drawing, frames)

    def _film(self, scene: Scene, frames: list[np.ndarray]) -> float:
        start = time.perf_counter()
        frame = self._observer.frame(scene)
        if frame is not None:
            frames.append(frame)
        return time.perf_counter() - start


@functools.cache
def _process_renderers(capacity: int, size: int, profile: str, triangles: int) -> RendererCache:
    flags = {**_PROFILES[profile], "hidden_groups": (_COLLISION_GEOMS,)}
    return RendererCache(capacity, size, flags, functools.partial(simplified, triangles=triangles))


@functools.cache
def _can_draw() -> bool:
    try:
        configure_gl("pixels")
    except RuntimeError as error:
        _logger.warning("no videos: %s", error)
        return False
    return True

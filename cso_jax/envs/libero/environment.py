"""A LIBERO task as a slot sees it: a place in a shared scene, its observations and its images.

Camera images keep robosuite's convention, the bottom row first, as LIBERO's published data has them. Only videos are
turned over. Observation keys are those of the published data.
"""

import dataclasses
import functools

import numpy as np

from cso_jax.envs.gl import RendererCache, can_draw, configure_gl
from cso_jax.envs.libero.culling import culled
from cso_jax.envs.libero.meshes import simplified
from cso_jax.envs.libero.protocols import PROTOCOLS, Protocol, Start, horizon
from cso_jax.envs.libero.scenes import SceneShare
from cso_jax.envs.libero.settings import PROFILES, Options, Settings
from cso_jax.envs.libero.simulator import Scene, Snapshot
from cso_jax.envs.libero.state import state_vector
from cso_jax.envs.protocol import InitState, Observation, TrainInit, require_train

_VIDEO_CAMERA = "agentview"
_COLLISION_GEOMS = 0
_TWINS = 2
"""Scenes with looks, up to 500 MB each, that a run from state keeps for its videos."""


def image_key(camera: str) -> str:
    """The observation key of a camera: "agentview_rgb", "eye_in_hand_rgb", ..."""
    return camera.removeprefix("robot0_") + "_rgb"


@functools.cache
def process_scenes(options: Options, drawn: bool) -> SceneShare:
    """The scenes that all of this process with the same settings share, with looks if they are to be `drawn`."""
    chosen = {"assets": options.assets, "variant": options.variant, "pro": options.pro, "looks": drawn}
    return SceneShare(options.scenes, {"libero": chosen})


def start_of_training(settings: Settings, scene: Scene, init: TrainInit) -> None:
    """Put a train initial state into `scene` as an episode of a rollout starts from it, for demonstrations.

    Raises what `Start.begin` raises.
    """
    options = settings.libero
    protocol = dataclasses.replace(PROTOCOLS[options.protocol], stale_first_observation=False)
    _start(options, protocol).begin(scene, require_train(init), lambda scene: {})


class Observer:
    """Turns a scene into what the policy sees, and into video frames."""

    def __init__(self, settings: Settings) -> None:
        """Raises RuntimeError if camera images are wanted and nothing can draw them."""
        configure_gl(settings.obs)
        self.parked: Snapshot | None = None  # as whoever enters a scene has; it stays None
        self._settings = settings

    def observe(self, scene: Scene) -> Observation:
        """The policy's observation of the scene as it is now, with cameras drawn if they are part of it."""
        seen: Observation = {
            "joint_states": scene.joint_states().astype(np.float32),
            "gripper_states": scene.gripper_states().astype(np.float32),
        }
        if self._settings.obs == "state" or self._settings.libero.proprio != "joints":
            seen["ee_pos"] = scene.hand_pose()[0].astype(np.float32)
        if self._settings.obs != "state" and self._settings.libero.proprio == "ee8":
            del seen["joint_states"]
            seen["ee_ori"] = scene.hand_axis_angle().astype(np.float32)
        if self._settings.obs == "state":
            return {**seen, "state": state_vector(scene)}
        size = self._settings.image_size
        images = {image_key(camera): self._draw(scene, camera, size, False) for camera in self._settings.cameras}
        return {**seen, **images}

    def frame(self, scene: Scene) -> np.ndarray | None:
        """A video frame `[V, V, 3]` uint8, the top row first, None if this machine cannot draw."""
        if not scene.looks:
            if not can_draw():
                return None
            return self._frame_of_twin(scene)
        return self._draw(scene, _VIDEO_CAMERA, self._settings.video_size, True)

    def _frame_of_twin(self, scene: Scene) -> np.ndarray:
        """As `frame`, from a scene with looks in the same state: few episodes of a run from state are filmed."""
        twins = _process_twins(self._settings.libero)
        twin = twins.enter(self, scene.task)
        twin.restore(scene.snapshot())
        image = self._draw(twin, _VIDEO_CAMERA, self._settings.video_size, True)
        twins.leave(self)  # every frame is of a state of its own: there is no episode to be parked
        return image

    def _draw(self, scene: Scene, camera: str, size: int, upright: bool) -> np.ndarray:
        options = self._settings.libero
        largest = max(self._settings.image_size, self._settings.video_size)
        drawer = _process_renderers(options.scenes, largest, options.render, options.decimate)
        scene.update_visuals()
        made = drawer.get(scene.task, scene.model)
        with culled(scene.model, scene.data, camera, reflections=PROFILES[options.render]["reflections"]):
            return made.render(scene.model, scene.data, camera, size, upright=upright)


class LiberoSimulation:
    """Runs in a scene that it shares with the others of its process. Satisfies `cso_jax.envs.slot.SlotSimulation`."""

    def __init__(self, settings: Settings, scenes: SceneShare, observer: Observer) -> None:
        self.parked: Snapshot | None = None
        self.scenes = scenes
        self._settings = settings
        self._observer = observer
        options = settings.libero
        self._start = _start(options, PROTOCOLS[options.protocol])
        self._task = ""

    def scene(self) -> Scene:
        """The scene with this episode in it. Others may have used it since the last look: ask each time."""
        return self.scenes.enter(self, self._task)

    def horizon(self, task: str) -> int:
        """The protocol's, or the settings'. Raises ValueError for an unknown task."""
        return horizon(self._start.protocol, task, self._settings.horizon)

    def begin(self, init: InitState) -> Observation | None:
        """Put `init` into its task's scene; the protocol's first observation where it has one. Raises ValueError for an
        unknown task."""
        self._task = init.task
        return self._start.begin(self.scene(), init, self._observer.observe)

    def step(self, action: np.ndarray) -> bool:
        """Execute `action` `[7]`; whether the task is solved now."""
        return self.scene().step(action)

    def observe(self) -> Observation:
        """What the policy sees now."""
        return self._observer.observe(self.scene())

    def frame(self) -> np.ndarray | None:
        """A video frame, None if this machine cannot draw."""
        return self._observer.frame(self.scene())

    def end(self) -> None:
        """Leave the scene."""
        self.scenes.leave(self)


def _start(options: Options, protocol: Protocol) -> Start:
    return Start(protocol, options.train_states, options.datasets, options.joint_noise, options.physics)


@functools.cache
def _process_twins(options: Options) -> SceneShare:
    return process_scenes(dataclasses.replace(options, scenes=_TWINS), True)


@functools.cache
def _process_renderers(capacity: int, size: int, profile: str, triangles: int) -> RendererCache:
    flags = {**PROFILES[profile], "hidden_groups": (_COLLISION_GEOMS,)}
    return RendererCache(capacity, size, flags, functools.partial(simplified, triangles=triangles))

"""MetaWorld (v3 tasks) behind the environment protocol: state or camera observations, success-latched episodes, videos.

A slot environment borrows a simulator of the right task for one episode at a time, from a pool that all slots of its
process share. Cameras are drawn once per chunk, when the policy looks.
"""

import dataclasses
import functools
import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from cso_jax.envs.gl import RendererCache, configure_gl
from cso_jax.envs.metaworld.simulator import ACTION_DIM, STATE_DIM, Simulator, SimulatorPool, task_names, task_sets
from cso_jax.envs.protocol import (
    INDEX_LIMIT,
    ChunkResult,
    Environment,
    EnvSpec,
    EvalInit,
    InitState,
    Observation,
    TrainInit,
)

__all__ = [
    "MetaWorldEnvironment",
    "Observer",
    "Settings",
    "make_environments",
    "process_pool",
    "renderer",
    "require_files",
    "seed_of",
    "sentence",
    "spec",
    "task_names",
    "task_sets",
]

MAX_HORIZON = 500
"""MetaWorld raises an error at step 501."""

HAND_DIM = 4
# A renderer weighs 30-80 MB: many tasks in one process would fill the memory, too few would be rebuilt all the time.
_MIN_RENDERERS = 16
_PLAIN = {"shadows": False, "reflections": False, "msaa": 0}

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What this module reads of `config.env`; sizes in pixels, horizon and video_every in simulator steps."""

    obs: str = "state"
    cameras: tuple[str, ...] = ("corner2",)
    image_size: int = 128
    horizon: int = MAX_HORIZON
    render: Mapping[str, Any] = dataclasses.field(default_factory=lambda: dict(_PLAIN))
    video_size: int = 128
    video_every: int = 4
    instance_cap: int = 96

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Settings":
        """Read a plain mapping; keys that mean nothing here are ignored. Raises ValueError for impossible values."""
        known = {field.name for field in dataclasses.fields(cls)}
        values = {key: value for key, value in settings.items() if key in known}
        if "cameras" in values:
            values["cameras"] = tuple(values["cameras"])
        values["render"] = {**_PLAIN, **values.get("render", {})}
        if set(values["render"]) != set(_PLAIN):
            raise ValueError(f"render takes {', '.join(_PLAIN)}, got {', '.join(values['render'])}")
        made = cls(**values)
        if made.obs not in ("state", "pixels"):
            raise ValueError(f"obs must be 'state' or 'pixels', got {made.obs!r}")
        if not 1 <= made.horizon <= MAX_HORIZON:
            raise ValueError(f"horizon must be in [1, {MAX_HORIZON}] (MetaWorld's own limit), got {made.horizon}")
        for name in ("image_size", "video_size", "video_every", "instance_cap"):
            if getattr(made, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(made, name)}")
        if not made.cameras:
            raise ValueError("cameras is empty: name at least one")
        return made


EVALUATION_STATES: int | None = None


def require_files(settings: Mapping[str, Any]) -> None:
    """MetaWorld's package brings everything."""


def sentence(task: str) -> str:
    """The task's name in words."""
    return task.removesuffix("-v3").replace("-", " ")


def spec(settings: Mapping[str, Any]) -> EnvSpec:
    """Observation and action shapes under `settings`; builds no simulator."""
    chosen = Settings.of(settings)
    if chosen.obs == "state":
        return EnvSpec({"state": STATE_DIM}, {}, ACTION_DIM)
    size = (chosen.image_size, chosen.image_size, 3)
    return EnvSpec({"hand": HAND_DIM}, dict.fromkeys(chosen.cameras, size), ACTION_DIM)


def renderer(settings: Mapping[str, Any]) -> str:
    """What draws the images ("egl", "osmesa", ...), "none" for state observations.

    Raises RuntimeError if images are wanted and nothing can draw them.
    """
    return configure_gl("pixels") if Settings.of(settings).obs == "pixels" else "none"


def make_environments(settings: Mapping[str, Any], count: int) -> list[Environment]:
    """`count` slot environments for this process. They share their simulators, which are made when first needed."""
    chosen = Settings.of(settings)
    pool = process_pool(chosen.instance_cap)
    observer = Observer(chosen, slots=count)
    return [MetaWorldEnvironment(chosen, pool, observer) for _ in range(count)]


def seed_of(init: InitState) -> int:
    """The MetaWorld seed of an initial state; the two splits have disjoint ranges. Raises TypeError for other types."""
    if isinstance(init, TrainInit):
        return init.index
    if isinstance(init, EvalInit):
        return init.index + INDEX_LIMIT
    raise TypeError(f"an initial state is a TrainInit or an EvalInit, got {init!r}")


@functools.cache
def process_pool(capacity: int) -> SimulatorPool:
    """The pool that everything in this process with the same `capacity` shares."""
    return SimulatorPool(capacity)


class Observer:
    """Turns a simulator's state into what the policy sees, and into video frames."""

    def __init__(self, settings: Settings, *, slots: int) -> None:
        """Raises RuntimeError if camera images are wanted and nothing can draw them."""
        configure_gl(settings.obs)
        self._settings = settings
        self._slots = slots

    def observe(self, simulator: Simulator, observation: np.ndarray) -> Observation:
        """The policy's observation for MetaWorld's `[39]`, with cameras drawn now if they are part of it."""
        if self._settings.obs == "state":
            return {"state": observation.astype(np.float32)}
        images = {name: self._draw(simulator, name, self._settings.image_size) for name in self._settings.cameras}
        return {"hand": observation[:HAND_DIM].astype(np.float32), **images}

    def frame(self, simulator: Simulator) -> np.ndarray | None:
        """A video frame `[V, V, 3]` uint8, None if this machine cannot draw (state runs go on without videos)."""
        if self._settings.obs == "state" and not _can_draw():
            return None
        return self._draw(simulator, self._settings.cameras[0], self._settings.video_size)

    def _draw(self, simulator: Simulator, camera: str, size: int) -> np.ndarray:
        largest = max(self._settings.image_size, self._settings.video_size)
        renderers = _process_renderers(largest, tuple(sorted(self._settings.render.items())))
        renderers.capacity = max(renderers.capacity, self._slots)
        drawer = renderers.get(simulator.task, simulator.model)
        return drawer.render(simulator.model, simulator.data, camera, size)


class MetaWorldEnvironment:
    """One slot: runs one episode at a time on a simulator borrowed from the pool."""

    def __init__(self, settings: Settings, pool: SimulatorPool, observer: Observer) -> None:
        self._settings = settings
        self._pool = pool
        self._observer = observer
        self._simulator: Simulator | None = None
        self._record = False
        self._step = 0

    def reset(self, init: InitState, *, record: bool = False) -> ChunkResult:
        """Start an episode from `init`. Raises ValueError for an unknown task, TypeError for a nameless init type."""
        seed = seed_of(init)
        self.close()
        self._simulator = self._pool.acquire(init.task)
        self._record = record
        self._step = 0
        start = time.perf_counter()
        observation = self._simulator.reset(seed)
        return self._result(observation, False, False, 0, time.perf_counter() - start, [], 0.0)

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Execute `actions` `[E, 4]`, clipped to [-1, 1], until they are used up, success, or the horizon.

        Raises ValueError for another shape or numbers that are not finite (then nothing was executed), RuntimeError
        if no episode is under way.
        """
        actions = np.asarray(actions, np.float32)
        if actions.ndim != 2 or actions.shape[1] != ACTION_DIM or len(actions) == 0:
            raise ValueError(f"actions must have shape [E, {ACTION_DIM}] with E > 0, got {list(actions.shape)}")
        if not np.isfinite(actions).all():
            raise ValueError("actions hold numbers that are not finite")
        if self._simulator is None:
            raise RuntimeError("no episode is under way: it has ended, or was never reset")
        start = time.perf_counter()
        success = done = False
        frames: list[np.ndarray] = []
        drawing, taken = 0.0, 0
        for action in np.clip(actions, -1.0, 1.0):
            observation, success = self._simulator.step(action)
            taken += 1
            self._step += 1
            done = success or self._step >= self._settings.horizon
            if self._record and not done and self._step % self._settings.video_every == 0:
                drawing += self._film(frames)
            if done:
                break
        physics = time.perf_counter() - start - drawing
        return self._result(observation, success, done, taken, physics, frames, drawing)

    def close(self) -> None:
        """End the episode under way, if any, and give its simulator back."""
        if self._simulator is not None:
            self._pool.release(self._simulator)
            self._simulator = None

    def _result(
        self,
        observation: np.ndarray,
        success: bool,
        done: bool,
        steps: int,
        physics_s: float,
        frames: list[np.ndarray],
        drawing: float,
    ) -> ChunkResult:
        assert self._simulator is not None
        start = time.perf_counter()
        seen = self._observer.observe(self._simulator, observation)
        drawing += time.perf_counter() - start
        if self._record and (done or steps == 0):
            drawing += self._film(frames)
        if done:
            self.close()
        return ChunkResult(seen, success, done, steps, physics_s, drawing, frames)

    def _film(self, frames: list[np.ndarray]) -> float:
        assert self._simulator is not None
        start = time.perf_counter()
        frame = self._observer.frame(self._simulator)
        if frame is not None:
            frames.append(frame)
        return time.perf_counter() - start


@functools.cache
def _process_renderers(size: int, flags: tuple[tuple[str, Any], ...]) -> RendererCache:
    return RendererCache(_MIN_RENDERERS, size, dict(flags))


@functools.cache
def _can_draw() -> bool:
    try:
        configure_gl("pixels")
    except RuntimeError as error:
        _logger.warning("no videos: %s", error)
        return False
    return True

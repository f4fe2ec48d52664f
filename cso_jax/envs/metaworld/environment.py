"""A MetaWorld task as a slot sees it: a simulator borrowed for one episode, its observations and its images.

All slots of a process share one pool of simulators, and the renderers of its tasks.
"""

import functools
from typing import Any

import numpy as np

from cso_jax.envs.gl import RendererCache, can_draw, configure_gl
from cso_jax.envs.metaworld.settings import Settings
from cso_jax.envs.metaworld.simulator import Simulator, SimulatorPool
from cso_jax.envs.protocol import INDEX_LIMIT, EvalInit, InitState, Observation, TrainInit

HAND_DIM = 4
# A renderer weighs 30-80 MB: many tasks in one process would fill the memory, too few would be rebuilt all the time.
_MIN_RENDERERS = 16


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
        if self._settings.obs == "state" and not can_draw():
            return None
        return self._draw(simulator, self._settings.cameras[0], self._settings.video_size)

    def _draw(self, simulator: Simulator, camera: str, size: int) -> np.ndarray:
        largest = max(self._settings.image_size, self._settings.video_size)
        renderers = _process_renderers(largest, tuple(sorted(self._settings.render.items())))
        renderers.capacity = max(renderers.capacity, self._slots)
        drawer = renderers.get(simulator.task, simulator.model)
        return drawer.render(simulator.model, simulator.data, camera, size)


class MetaWorldSimulation:
    """Runs on a simulator borrowed from the pool. Satisfies `cso_jax.envs.slot.SlotSimulation`."""

    def __init__(self, settings: Settings, pool: SimulatorPool, observer: Observer) -> None:
        self._settings = settings
        self._pool = pool
        self._observer = observer
        self._borrowed: Simulator | None = None
        self._state = np.empty(0)

    def horizon(self, task: str) -> int:
        """The settings'; `task` makes no difference."""
        return self._settings.horizon

    def begin(self, init: InitState) -> None:
        """Borrow a simulator and put `init` into it. Raises ValueError for an unknown task."""
        seed = seed_of(init)
        self._borrowed = self._pool.acquire(init.task)
        self._state = self._borrowed.reset(seed)

    def step(self, action: np.ndarray) -> bool:
        """Execute `action` `[4]`; whether the task is solved now."""
        self._state, success = self._simulator.step(action)
        return success

    def observe(self) -> Observation:
        """What the policy sees now."""
        return self._observer.observe(self._simulator, self._state)

    def frame(self) -> np.ndarray | None:
        """A video frame, None if this machine cannot draw."""
        return self._observer.frame(self._simulator)

    def end(self) -> None:
        """Give the simulator back."""
        if self._borrowed is not None:
            self._pool.release(self._borrowed)
            self._borrowed = None

    @property
    def _simulator(self) -> Simulator:
        assert self._borrowed is not None
        return self._borrowed


@functools.cache
def _process_renderers(size: int, flags: tuple[tuple[str, Any], ...]) -> RendererCache:
    return RendererCache(_MIN_RENDERERS, size, dict(flags))

"""A tabletop task as a slot sees it: its own simulators, one per task that it has had, and the process's renderers."""

import functools
from typing import Any

import numpy as np

from cso_jax.envs.gl import RendererCache, can_draw, configure_gl
from cso_jax.envs.protocol import InitState, Observation
from cso_jax.envs.tabletop.settings import Settings
from cso_jax.envs.tabletop.simulator import Simulator
from cso_jax.envs.tabletop.tasks import TASKS, task_named

_HORIZON_HZ = 20  # the control rate that the tasks' horizons are in steps of


def horizon_of(settings: Settings, task: str) -> int:
    """Control steps after which an episode ends: the task's own horizon, `settings.horizon` at most.

    Raises ValueError for an unknown task.
    """
    return min(settings.horizon, round(task_named(task).horizon * settings.control_hz / _HORIZON_HZ))


class Observer:
    """Turns a simulator's state into what the policy sees, and into video frames."""

    def __init__(self, settings: Settings) -> None:
        """Raises RuntimeError if camera images are wanted and nothing can draw them."""
        configure_gl(settings.obs)
        self._settings = settings

    def observe(self, simulator: Simulator) -> Observation:
        """What the policy sees now, with cameras drawn if they are part of it."""
        if self._settings.obs == "state":
            return {"proprio": simulator.proprio(), "state": simulator.state()}
        images = {name: self._draw(simulator, name, self._settings.image_size) for name in self._settings.cameras}
        return {"proprio": simulator.proprio(), **images}

    def frame(self, simulator: Simulator) -> np.ndarray | None:
        """A video frame `[V, V, 3]` uint8, None if this machine cannot draw (state runs go on without videos)."""
        if self._settings.obs == "state" and not can_draw():
            return None
        return self._draw(simulator, self._settings.cameras[0], self._settings.video_size)

    def _draw(self, simulator: Simulator, camera: str, size: int) -> np.ndarray:
        largest = max(self._settings.image_size, self._settings.video_size)
        renderers = _process_renderers(largest, tuple(sorted(self._settings.render.items())))
        drawer = renderers.get(f"{self._settings.robot}/{simulator.task}", simulator.model)
        return drawer.render(simulator.model, simulator.data, camera, size)


class TabletopSimulation:
    """One arm that can be put before any of the tasks. Satisfies `cso_jax.envs.slot.SlotSimulation`."""

    def __init__(self, settings: Settings, observer: Observer) -> None:
        self._settings = settings
        self._observer = observer
        self._simulators: dict[str, Simulator] = {}
        self._current: Simulator | None = None

    @property
    def stages(self) -> tuple[bool, ...]:
        """Which stages of the task have been done in this episode, or in the last one after its end."""
        return self._current.stages if self._current is not None else ()

    @property
    def simulator(self) -> Simulator:
        """The simulator of the last episode's task. Raises RuntimeError before the first one."""
        if self._current is None:
            raise RuntimeError("there was no episode yet: reset first")
        return self._current

    def horizon(self, task: str) -> int:
        """Control steps. Raises ValueError for an unknown task."""
        return horizon_of(self._settings, task)

    def begin(self, init: InitState) -> None:
        """Put `init` in. Raises ValueError for an unknown task."""
        if init.task not in self._simulators:
            self._simulators[init.task] = Simulator(init.task, self._settings.robot, self._settings.control_hz)
        self._current = self._simulators[init.task]
        self._current.reset(init)

    def step(self, action: np.ndarray) -> bool:
        """Execute `action` `[7]`; whether the task is solved now."""
        return self.simulator.step(action)

    def observe(self) -> Observation:
        """What the policy sees now."""
        return self._observer.observe(self.simulator)

    def frame(self) -> np.ndarray | None:
        """A video frame, None if this machine cannot draw."""
        return self._observer.frame(self.simulator)

    def end(self) -> None:
        """Nothing to give back: the simulators are its own."""


@functools.cache
def _process_renderers(size: int, flags: tuple[tuple[str, Any], ...]) -> RendererCache:
    return RendererCache(len(TASKS), size, dict(flags))

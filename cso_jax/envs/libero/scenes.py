"""The compiled scenes of a process, shared by all its slots: one per task, for one episode at a time."""

import logging
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

from cso_jax.envs.libero.simulator import Scene, Snapshot

_logger = logging.getLogger(__name__)


class Slot(Protocol):
    """Who runs an episode: `parked` holds its state while somebody else uses the scene."""

    parked: Snapshot | None


class SceneShare:
    """Scenes by task, up to 500 MB and seconds of compiling each with looks, a tenth without; above `capacity` the
    least recently used one goes.

    Whoever steps or looks enters first and gets the scene with its own episode in it; the episode that was there is
    parked with its owner. An owner that has not entered since its scene went finds its episode in the new one.
    """

    def __init__(self, capacity: int, settings: Mapping[str, Any]) -> None:
        self.capacity = capacity
        self._settings = settings
        self._scenes: OrderedDict[str, Scene] = OrderedDict()
        self._owners: dict[str, Slot] = {}
        self._warned = False

    def __len__(self) -> int:
        return len(self._scenes)

    def enter(self, slot: Slot, task: str) -> Scene:
        """The scene of `task` with the episode of `slot` in it (anything, if it has none yet).

        Raises what `Scene` raises.
        """
        scene = self._scenes.pop(task, None)
        if scene is None:
            while len(self._scenes) >= self.capacity:
                self._evict()
            scene = Scene(task, self._settings)
        self._scenes[task] = scene
        owner = self._owners.get(task)
        if owner is not slot:
            if owner is not None:
                owner.parked = scene.snapshot()
            if slot.parked is not None:
                scene.restore(slot.parked)
            self._owners[task] = slot
        slot.parked = None
        return scene

    def leave(self, slot: Slot) -> None:
        """The episode of `slot` is over: its state need not be kept."""
        slot.parked = None
        for task in [task for task, owner in self._owners.items() if owner is slot]:
            del self._owners[task]

    def _evict(self) -> None:
        task, scene = self._scenes.popitem(last=False)
        owner = self._owners.pop(task, None)
        if owner is not None:
            owner.parked = scene.snapshot()
            if not self._warned:
                self._warned = True
                _logger.warning(
                    "more tasks are under way in one process than config.env.libero.scenes=%d allows scenes: scenes "
                    "are compiled again and again; raise it, or lower config.rollout.slots",
                    self.capacity,
                )
        scene.close()

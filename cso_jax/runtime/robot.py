"""What a robot's driver offers to the control loop. No JAX, no ROS: a driver is any object with these."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np


class Robot(Protocol):
    """One arm, or several that are commanded as one. Nothing here may block for longer than a control period."""

    @property
    def rate_hz(self) -> float:
        """Commands per second that it wants."""

    def observe(self) -> tuple[Mapping[str, np.ndarray], float]:
        """The newest observation, entries as in the manifest, and when it was made, in `time.monotonic` seconds."""

    def command(self, action: np.ndarray) -> None:
        """Execute one action `[A]` during the coming control period."""

    def hold(self) -> None:
        """Stay where it is; called each period in which there is no action to execute."""

    def stop(self) -> None:
        """Come to rest and take no more commands: an emergency, or the end. May be called from another thread."""

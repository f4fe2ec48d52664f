"""The arm as an expert sees it: smooth, speed-limited motions that yield one action per control step.

A motion is a generator: it yields the next action `[7]` and is resumed after the simulator has taken it. Paths are
straight lines of the grip site, run through with a minimum-jerk profile as a person's hand does, and every action is an
absolute command, so noise in one does not add up.
"""

import dataclasses
from collections.abc import Generator

import numpy as np

from cso_jax.envs.tabletop.simulator import Simulator
from cso_jax.experts.tabletop.kinematics import Kinematics, pointing_down, rotation_of, rotation_vector

Motion = Generator[np.ndarray, None, None]

_SPEED, _TURN = 0.38, 2.0  # m/s and rad/s in the middle of a motion
_PEAK = 1.875  # of a minimum-jerk motion: highest speed over mean speed
_SHORTEST_S = 0.2
_FINGERS_S = 0.45  # to open or close all the way, and for the grip to build up
_SETTLE_S = 0.15  # the motors lag behind the command by about 0.05


@dataclasses.dataclass(frozen=True)
class Style:
    """What varies between demonstrations of one task: drawn once per episode, constant within it."""

    speed: float = 1.0
    hover: float = 0.0

    @classmethod
    def draw(cls, generator: np.random.Generator) -> "Style":
        """Speed as a share of the fastest, and metres of travel height besides the usual ones."""
        return cls(speed=float(generator.uniform(0.9, 1.0)), hover=float(generator.uniform(0.0, 0.015)))


class Arm:
    """One episode's view of a simulator, and what the expert last commanded."""

    def __init__(self, simulator: Simulator, kinematics: Kinematics, style: Style, control_hz: int) -> None:
        self.simulator = simulator
        self.style = style
        self._kinematics = kinematics
        self._hz = control_hz
        self._joints = np.array(simulator.robot.home)
        self._opening = 1.0

    def action(self) -> np.ndarray:
        """The action `[7]` of the present command."""
        return self.simulator.robot.action_of(self._joints, self._opening)

    def move(self, position: np.ndarray, yaw: float, *, speed: float = 1.0) -> Motion:
        """Bring the grip site to `position` `[3]`, the fingers down and turned by `yaw`, on a straight line."""
        start, facing = self._kinematics.pose(self._joints)
        shift, turn = position - start, rotation_vector(pointing_down(yaw) @ facing.T)
        pace = speed * self.style.speed
        slowest = max(float(np.linalg.norm(shift)) / _SPEED, float(np.linalg.norm(turn)) / _TURN) / pace
        steps = int(np.ceil(max(_PEAK * slowest, _SHORTEST_S) * self._hz))
        for step in range(1, steps + 1):
            share = minimum_jerk(step / steps)
            self._joints = self._kinematics.solve(
                self._joints, start + share * shift, rotation_of(share * turn) @ facing
            )
            yield self.action()

    def fingers(self, opening: float) -> Motion:
        """Open or close to `opening` in [0, 1] where the hand is."""
        self._opening = opening
        yield from self.wait(_FINGERS_S)

    def part(self, gap: float) -> Motion:
        """Open or close until the pads are `gap` metres apart."""
        yield from self.fingers(self.simulator.robot.opening_for(gap))

    def settle(self) -> Motion:
        """Let the arm arrive."""
        yield from self.wait(_SETTLE_S)

    def wait(self, seconds: float) -> Motion:
        """Keep the command."""
        for _ in range(round(seconds * self._hz)):
            yield self.action()

    def yaw_of(self, name: str) -> float:
        """The turn of an object about the vertical, rad."""
        _, rotation = self.simulator.pose(name)
        return float(np.arctan2(rotation[1, 0], rotation[0, 0]))

    def position_of(self, name: str) -> np.ndarray:
        """Where an object's origin is, `[3]`."""
        return self.simulator.pose(name)[0]

    def grip(self) -> np.ndarray:
        """Where the grip site is, `[3]`."""
        return self.simulator.grip()[0]


def minimum_jerk(share: float) -> float:
    """The way done, in [0, 1], after a share of the time: at rest, and without acceleration, at both ends."""
    return share**3 * (10.0 - 15.0 * share + 6.0 * share**2)

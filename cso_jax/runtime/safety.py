"""Between the policy and the motors: what a command may be. Pure NumPy, no JAX.

Letters: A action size, J joints. Positions in rad, velocities in rad/s, steps in rad per control step. A command that
is not a finite vector of the right size is never sent: the last one is repeated. One that goes too far is shortened.
"""

import io
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from cso_jax.files import PathLike, atomic_write_bytes
from cso_jax.runtime.manifest import Limits, Manifest
from cso_jax.runtime.robot import Robot


class EmergencyStop(RuntimeError):
    """The stop was asked for; the robot has to be stopped, and started again by a person."""


class Filtered(NamedTuple):
    """What to send: `action` `[A]`, or None to hold; `reasons` say what was changed, in one word each."""

    action: np.ndarray | None
    reasons: tuple[str, ...]


def well_formed(action: Any, size: int) -> bool:
    """Whether an action is a vector `[size]` of finite numbers."""
    array = np.asarray(action) if isinstance(action, (np.ndarray, list, tuple)) else None
    return array is not None and array.shape == (size,) and array.dtype.kind in "fiu" and bool(np.isfinite(array).all())


def step_limit(limits: Limits, period_s: float) -> np.ndarray:
    """How far each joint may go in one control step `[J]`: the smaller of `max_step` and velocity x period."""
    unlimited = (np.inf,) * len(limits.joints)
    steps = np.asarray(limits.max_step or unlimited, np.float64)
    return np.minimum(steps, np.asarray(limits.velocity or unlimited, np.float64) * period_s)


def towards(last: np.ndarray, wanted: np.ndarray, step: np.ndarray) -> np.ndarray:
    """From `last` towards `wanted` `[J]`, each joint by `step` at most."""
    return last + np.clip(wanted - last, -step, step)


def within(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """`values`, each at least `low` and at most `high`."""
    return np.clip(values, low, high)


class Safety:
    """The filter of one robot. `begin` it with where the robot is: the first command is limited as every other one.

    `period_s` is the control period; `emergency()` is asked before each command, and once it is true all later ones
    raise EmergencyStop. The joints of the manifest's limits are those actions with their names.
    """

    def __init__(self, manifest: Manifest, period_s: float, emergency: Callable[[], bool] = lambda: False) -> None:
        action, limits = manifest.action, manifest.limits
        self.counts: Counter[str] = Counter()
        self._size = action.dim
        self._low, self._high = np.asarray(action.low), np.asarray(action.high)
        self._step = np.full(action.dim, np.inf)
        self._emergency = emergency
        self._stopped = False
        self._last: np.ndarray | None = None
        self._needs_start = limits is not None
        if limits is None:
            return
        missing = [joint for joint in limits.joints if joint not in action.names]
        if missing:
            raise ValueError(
                f"limits.joints: expected names of actions ({', '.join(action.names)}), found {missing[0]!r}: these "
                "limits hold for joint positions, and the policy commands something else"
            )
        joints = [action.names.index(joint) for joint in limits.joints]
        if limits.position_low is not None:
            self._low[joints] = np.maximum(self._low[joints], limits.position_low)
        if limits.position_high is not None:
            self._high[joints] = np.minimum(self._high[joints], limits.position_high)
        self._step[joints] = step_limit(limits, period_s)
        if (self._low > self._high).any():
            index = int(np.argmax(self._low > self._high))
            raise ValueError(f"{action.names[index]}: the action's range and the limits have nothing in common")

    def begin(self, position: np.ndarray) -> None:
        """Start from where the robot is: the position `[A]` as a command that would keep it there."""
        if not well_formed(position, self._size):
            raise ValueError(f"expected the robot's position as {self._size} finite numbers, found {position!r:.80}")
        self._last = np.asarray(position, np.float64)

    def stop(self) -> None:
        """Let no more commands through."""
        self._stopped = True

    def check(self) -> None:
        """Raises EmergencyStop where the stop has been asked for, now or before."""
        if self._stopped or self._emergency():
            self._stopped = True
            raise EmergencyStop("emergency stop: no command is sent; start the program again when it is safe")

    def said(self) -> dict[str, int]:
        """How often commands were changed and why, in words for a person; from any thread."""
        return {f"commands changed: {reason.replace('_', ' ')}": count for reason, count in dict(self.counts).items()}

    def filter(self, action: np.ndarray) -> Filtered:
        """What may be sent for a wanted action `[A]`. Raises EmergencyStop."""
        self.check()
        if not well_formed(action, self._size):
            return self._changed(self._last, ("malformed",))
        if self._last is None and self._needs_start:
            return self._changed(None, ("no_start",))
        wanted = np.asarray(action, np.float64)
        allowed = within(wanted, self._low, self._high)
        reasons: tuple[str, ...] = ("range",) if (allowed != wanted).any() else ()
        if self._last is not None:
            near = towards(self._last, allowed, self._step)
            reasons += ("step",) if (near != allowed).any() else ()
            allowed = near
        self._last = allowed
        return self._changed(allowed, reasons)

    def _changed(self, action: np.ndarray | None, reasons: tuple[str, ...]) -> Filtered:
        self.counts.update(reasons)
        return Filtered(None if action is None else action.astype(np.float32), reasons)


class DryRun:
    """A robot that is watched, not moved: what would have been sent is recorded, `save` writes it as NPZ."""

    def __init__(self, robot: Robot, clock: Callable[[], float]) -> None:
        self._robot = robot
        self._clock = clock
        self._sent: list[tuple[float, np.ndarray]] = []
        self._held: list[float] = []
        self._lock = threading.Lock()

    @property
    def rate_hz(self) -> float:
        return self._robot.rate_hz

    def observe(self) -> tuple[Mapping[str, np.ndarray], float]:
        return self._robot.observe()

    def command(self, action: np.ndarray) -> None:
        with self._lock:
            self._sent.append((self._clock(), np.array(action, np.float32)))

    def hold(self) -> None:
        with self._lock:
            self._held.append(self._clock())

    def stop(self) -> None:
        self.hold()

    def save(self, path: PathLike) -> None:
        """`time_s` `[n]` and `action` `[n, A]` of the commands, `held_s` of the holds, all on the monotonic clock."""
        with self._lock:
            actions = np.stack([action for _, action in self._sent]) if self._sent else np.zeros((0, 0), np.float32)
            times, held = np.asarray([at for at, _ in self._sent]), np.asarray(self._held)
        file = io.BytesIO()
        np.savez_compressed(file, time_s=times, action=actions, held_s=held)
        atomic_write_bytes(path, file.getvalue())

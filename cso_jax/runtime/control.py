"""The control loop of a robot: one command per period, while the next chunk is asked for in the background. No JAX.

    robot, client = MyRobot(), PolicyClient(...)
    loop = ControlLoop(robot, client.manifest, lambda seen: client.infer(seen).actions, position_of=my_position)
    report = loop.run(seconds=60)

Periods are counted from the start on the monotonic clock, so that nothing drifts: a period that was missed is skipped,
with its action. There is always at most one request under way; it is made so early that its answer comes before the
execution horizon of the chunk in use ends, and where it comes later the rest of that chunk bridges the gap. Where no
action is left, or none is allowed, the robot holds.
"""

import dataclasses
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from cso_jax.runtime.chunks import ChunkSchedule, LatencyEstimate
from cso_jax.runtime.manifest import Manifest
from cso_jax.runtime.observer import Observer
from cso_jax.runtime.robot import Robot
from cso_jax.runtime.safety import Safety

Infer = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""From an observation to a chunk `[T, A]`; called in a thread of its own, and may raise."""


class ControlError(RuntimeError):
    """The loop has stopped the robot and given up."""


class Clock(Protocol):
    """Seconds that only grow; a simulated one makes tests exact."""

    def now(self) -> float: ...

    def sleep_until(self, when: float) -> None: ...


class MonotonicClock:
    """The machine's."""

    def now(self) -> float:
        return time.monotonic()

    def sleep_until(self, when: float) -> None:
        time.sleep(max(0.0, when - time.monotonic()))


class Result(NamedTuple):
    """What came of a request: the chunk or the error, and how long it took."""

    chunk: np.ndarray | None
    error: Exception | None
    seconds: float


class Planner(Protocol):
    """One request at a time, answered later."""

    def start(self, observation: Mapping[str, np.ndarray]) -> None: ...

    def poll(self) -> Result | None: ...

    def close(self) -> None: ...


class ThreadPlanner:
    """Calls `infer` in a thread, so that a policy or a network that hangs does not hold the loop up."""

    def __init__(self, infer: Infer) -> None:
        self._infer = infer
        self._asked: Mapping[str, np.ndarray] | None = None
        self._result: Result | None = None
        self._wake = threading.Condition()
        self._closed = False
        threading.Thread(target=self._run, name="planner", daemon=True).start()

    def start(self, observation: Mapping[str, np.ndarray]) -> None:
        with self._wake:
            self._asked = observation
            self._wake.notify()

    def poll(self) -> Result | None:
        with self._wake:
            result, self._result = self._result, None
            return result

    def close(self) -> None:
        """Ask no more. A call that hangs is left alone: its thread ends with the program."""
        with self._wake:
            self._closed = True
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._asked is not None or self._closed)
                asked, self._asked = self._asked, None
            if asked is None or self._closed:
                return
            began = time.monotonic()
            try:
                chunk, error = self._infer(asked), None
            except Exception as caught:  # the loop goes on, counts it and asks again
                chunk, error = None, caught
            with self._wake:
                self._result = Result(chunk, error, time.monotonic() - began)


class Watchdog:
    """Stops the robot from a thread of its own where the loop has not come round for `limit_s`: a driver hangs."""

    def __init__(self, stop: Callable[[], None], limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stop, self._limit_s, self._clock = stop, limit_s, clock
        self._fed = clock()
        self.barked = False
        self._done = threading.Event()

    def feed(self) -> None:
        """The loop is alive."""
        self._fed = self._clock()

    def check(self) -> None:
        """Stop the robot, once, where it has been too long."""
        if not self.barked and self._clock() - self._fed > self._limit_s:
            self.barked = True
            self._stop()

    def __enter__(self) -> "Watchdog":
        self.feed()
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def _run(self) -> None:
        while not self._done.wait(self._limit_s / 4):
            self.check()


@dataclasses.dataclass
class Report:
    """What happened, in periods and requests; times in seconds.

    `waiting` periods come before the first chunk, `stalls` are those without an action afterwards, `skipped` ones were
    over before they began. `too_late` chunks held no action for a period still to come.
    """

    steps: int = 0
    commands: int = 0
    waiting: int = 0
    stalls: int = 0
    skipped: int = 0
    requests: int = 0
    failures: int = 0
    too_late: int = 0
    stale_observations: int = 0
    seams: int = 0
    seam_largest: float = 0.0
    late_p50: float = 0.0
    late_p99: float = 0.0
    latency_p50: float = 0.0
    latency_p99: float = 0.0
    safety: dict[str, int] = dataclasses.field(default_factory=dict)
    last_error: str = ""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Of the loop. `margin`: steps to ask earlier than the latency says; `blend`: steps over which chunks are mixed.

    An observation older than `stale_s` is not planned from. Without a chunk for `give_up_s` the robot is stopped and
    the loop ends; `watchdog_s` is how long one period may hang.
    """

    margin: int = 1
    blend: int = 0
    stale_s: float = 0.5
    give_up_s: float = 10.0
    watchdog_s: float = 1.0


class ControlLoop:
    """Runs a robot from a policy: see the module."""

    def __init__(
        self,
        robot: Robot,
        manifest: Manifest,
        infer: Infer | None,
        *,
        position_of: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None = None,
        emergency: Callable[[], bool] = lambda: False,
        settings: Settings | None = None,
        clock: Clock | None = None,
        planner: Planner | None = None,
        view: Observer | None = None,
    ) -> None:
        """`position_of` reads from an observation the command `[A]` that keeps the robot where it is; limits need it.

        `planner` replaces the thread that calls `infer`; `view` is told what happens, by the clock's time.
        """
        rate, trained = robot.rate_hz, manifest.action.rate_hz
        if not rate > 0 or (trained is not None and abs(rate - trained) > 0.01 * trained):
            raise ValueError(f"expected a robot at the policy's rate {trained} Hz, found one at {rate} Hz")
        if manifest.limits is not None and position_of is None:
            raise ValueError("the manifest has limits: expected position_of, to start from where the robot is")
        if planner is None and infer is None:
            raise ValueError("expected infer, a function from an observation to a chunk")
        self.robot = robot
        self.manifest = manifest
        self.settings = settings or Settings()
        self.safety = Safety(manifest, 1 / rate, emergency)
        self.report = Report()
        self._period = 1 / rate
        self._clock = clock or MonotonicClock()
        self._planner = planner or ThreadPlanner(infer)  # type: ignore[arg-type]
        self._position_of = position_of
        self._view = view or Observer()
        blended = np.asarray(["gripper" not in name.lower() for name in manifest.action.names])
        self._schedule = ChunkSchedule(manifest.action.execution_horizon, self.settings.blend, blended)
        self._latency = LatencyEstimate(self._period)
        self._history: deque[Mapping[str, np.ndarray]] = deque(maxlen=manifest.history)
        self._under_way: tuple[int, float] | None = None  # the observation's step and time
        self._begun = self._new_chunk = False
        self._late: deque[float] = deque(maxlen=20_000)
        self._latencies: deque[float] = deque(maxlen=2_000)
        self._view.watch("loop", self._counts)

    def run(self, seconds: float = math.inf, stop: threading.Event | None = None) -> Report:
        """Control until the time is over or `stop` is set, then hold. Raises ControlError, EmergencyStop; whatever is
        raised, the robot has been stopped before."""
        steps = math.inf if math.isinf(seconds) else round(seconds / self._period)
        self._start = self._fresh = self._clock.now()
        step = 0
        try:
            limit_s = max(self.settings.watchdog_s, 3 * self._period)
            with Watchdog(self.robot.stop, limit_s) as watchdog:
                while step < steps and not (stop and stop.is_set()):
                    due = self._start + step * self._period
                    self._clock.sleep_until(due)
                    watchdog.feed()
                    self._late.append(max(0.0, self._clock.now() - due))
                    self._tick(step)
                    if watchdog.barked:
                        raise ControlError(f"a period took longer than {limit_s:g} s: robot stopped")
                    step = self._next(step)
            self.robot.hold()
        except BaseException:
            self.robot.stop()
            raise
        finally:
            self._planner.close()
            self._finish()
        return self.report

    def _next(self, step: int) -> int:
        """The step after this one; those whose time is over are skipped, and so are their actions."""
        passed = math.floor((self._clock.now() - self._start) / self._period + 1e-9)
        self.report.skipped += max(0, passed - step - 1)
        return max(step + 1, passed)

    def _tick(self, step: int) -> None:
        self.report.steps += 1
        self.safety.check()  # here too, for the periods in which the robot holds
        self._take(step)
        action = self._schedule.action(step)
        filtered = None if action is None else self.safety.filter(action)
        if filtered is None or filtered.action is None:
            if self._begun:
                self.report.stalls += 1
            else:
                self.report.waiting += 1
            self.robot.hold()
        else:
            self.report.commands += 1
            sent = self._clock.now()
            self.robot.command(filtered.action)
            self._view.command(filtered.action, sent, seam=self._new_chunk)
            self._new_chunk = False
        if self.manifest.history > 1 or self._under_way is None:
            self._look(step)  # after the command, which should not wait for a camera
        if self._clock.now() - self._fresh > self.settings.give_up_s:
            why = f": {self.report.last_error}" if self.report.last_error else ""
            raise ControlError(f"no new chunk for {self.settings.give_up_s:g} s, robot stopped{why}")

    def _take(self, step: int) -> None:
        """Take in what the planner has, if anything."""
        result = self._planner.poll()
        if result is None or self._under_way is None:
            return
        observed, made = self._under_way
        self._under_way = None
        if result.error is not None or not self._good(result.chunk):
            self.report.failures += 1
            error = result.error or ValueError("the policy answered something else than a chunk of finite actions")
            self.report.last_error = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            return
        assert result.chunk is not None
        self._latencies.append(result.seconds)
        self._view.answer(result.seconds)
        self._latency.add(self._clock.now() - made)
        if self._schedule.receive(np.asarray(result.chunk, np.float64), observed, step):
            self._begun = self._new_chunk = True
            self._fresh = self._clock.now()
        else:
            self.report.too_late += 1

    def _look(self, step: int) -> None:
        """Observe, and ask for the next chunk where it is time to."""
        wants = self._under_way is None and self._schedule.wants(step, self._latency.steps + self.settings.margin)
        if not wants and self.manifest.history == 1:
            return
        seen, made = self.robot.observe()
        self._view.observe(seen, made)
        now = self._clock.now()
        if not 0 <= now - made <= self.settings.stale_s:  # a camera that hangs, or another clock
            self.report.stale_observations += 1
            return
        if not self._history:
            self._history.extend([seen] * self.manifest.history)
            if self._position_of is not None:
                self.safety.begin(self._position_of(seen))
        else:
            self._history.append(seen)
        if wants:
            observed = min(step, round((made - self._start) / self._period))
            self._under_way = (observed, made)
            self.report.requests += 1
            self._planner.start(self._stacked())

    def _stacked(self) -> Mapping[str, np.ndarray]:
        if self.manifest.history == 1:
            return self._history[-1]
        return {name: np.stack([seen[name] for seen in self._history]) for name in self._history[-1]}

    def _good(self, chunk: Any) -> bool:
        array = isinstance(chunk, np.ndarray) and chunk.ndim == 2 and chunk.shape[1] == self.manifest.action.dim
        return array and len(chunk) > 0 and bool(np.isfinite(chunk).all())

    def _counts(self) -> dict[str, int]:
        report = self.report
        counts = {
            "stalls": report.stalls, "periods skipped": report.skipped, "requests failed": report.failures,
            "answers too late": report.too_late, "stale observations": report.stale_observations,
        }  # fmt: skip
        return counts | self.safety.said()

    def _finish(self) -> None:
        report = self.report
        report.seams, report.seam_largest = self._schedule.seams, self._schedule.seam_largest
        report.safety = dict(self.safety.counts)
        report.late_p50, report.late_p99 = _quantiles(self._late)
        report.latency_p50, report.latency_p99 = _quantiles(self._latencies)


def _quantiles(values: deque[float]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.5, 0.99)) if values else (0.0, 0.0)
    return float(low), float(high)

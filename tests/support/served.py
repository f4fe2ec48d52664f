"""A served policy without JAX: what it answers says what it was asked."""

import threading
import time

import numpy as np

from cso_jax.envs.fake import SPEED
from cso_jax.runtime.control import Result
from cso_jax.runtime.manifest import Action, Entry, Limits, Manifest, Task

RATE = 50.0  # Hz, of the arm


def manifest(*, history: int = 1, tasks: int = 2, chunk_length: int = 16, horizon: int = 8, **changed) -> Manifest:
    """A small arm: one camera, six joints and a gripper."""
    fields = {
        "name": "arm",
        "policy": "quest",
        "stage": "spo",
        "history": history,
        "observation": (
            Entry("camera", "image", (8, 10, 3), "uint8"),
            Entry("joints", "lowdim", (7,), "float32"),
        ),
        "action": Action(
            dim=7,
            chunk_length=chunk_length,
            execution_horizon=horizon,
            names=(*(f"joint{i}" for i in range(6)), "gripper"),
            low=(-3.0,) * 6 + (0.0,),
            high=(3.0,) * 6 + (0.08,),
            units="rad, gripper m",
            rate_hz=50.0,
        ),
        "sampling": {"temperature": 1.0, "top_k": 5},
        "tasks": tuple(Task(f"task{i}", f"do thing {i}") for i in range(tasks)),
        "limits": Limits(
            joints=tuple(f"joint{i}" for i in range(6)),
            position_low=(-2.0,) * 6,
            position_high=(2.0,) * 6,
            velocity=(5.0,) * 6,
            max_step=(0.1,) * 6,
        ),
        "provenance": {"step": 3, "success": [7, 10]},
        "files": {"weights.npz": "0" * 64},
    }
    return Manifest(**{**fields, **changed})


class FakePolicy:
    """Answers `[B, T, A]`: joint 0 is the step in the chunk, 1 the task, 2 the decision, 3 the first joint seen."""

    def __init__(self, of: Manifest | None = None, batch_sizes=(1, 4), latency_s: float = 0.0) -> None:
        self.manifest = of or manifest()
        self.batch_sizes = batch_sizes
        self.latency_s = latency_s
        self.warm = False
        self.calls: list[dict] = []
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Semaphore(0)
        self.error: Exception | None = None

    def warm_up(self) -> None:
        self.warm = True

    def act(self, observation, task, episode_keys, decision_index):
        self.calls.append({"observation": observation, "task": task, "keys": episode_keys, "index": decision_index})
        self.running.release()
        self.gate.wait(10)
        time.sleep(self.latency_s)
        if self.error:
            raise self.error
        action = self.manifest.action
        chunk = np.zeros((len(task), action.chunk_length, action.dim), np.float32)
        chunk[..., 0] = np.arange(action.chunk_length)
        chunk[..., 1] = task[:, None]
        chunk[..., 2] = decision_index[:, None]
        joints = observation["joints"]
        chunk[..., 3] = (joints[:, -1, 0] if joints.ndim == 3 else joints[:, 0])[:, None]
        return chunk


def observation(first: float = 0.0) -> dict[str, np.ndarray]:
    """One observation that the manifest accepts."""
    joints = np.zeros(7, np.float32)
    joints[0] = first
    return {"camera": np.zeros((8, 10, 3), np.uint8), "joints": joints}


class SimulatedClock:
    """Time that passes where somebody waits, or works."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def sleep_until(self, when: float) -> None:
        self.time = max(self.time, when)


class FakeRobot:
    """Remembers what it was told; `clock` makes its observations."""

    def __init__(self, clock=None, rate_hz: float = 50.0) -> None:
        self.rate_hz = rate_hz
        self.clock = clock or SimulatedClock()
        self.began = self.clock.now()
        self.commands: list[tuple[float, np.ndarray]] = []
        self.holds: list[float] = []
        self.stops = 0
        self.age_s = 0.0
        self.takes_s: list[float] = []

    def observe(self):
        made = self.clock.now() - self.age_s
        if self.takes_s:
            self.clock.sleep_until(self.clock.now() + self.takes_s.pop(0))
        return observation(made - self.began), made

    def command(self, action) -> None:
        self.commands.append((self.clock.now() - self.began, np.array(action)))

    def hold(self) -> None:
        self.holds.append(self.clock.now() - self.began)

    def stop(self) -> None:
        self.stops += 1


class SimulatedPlanner:
    """Plans a slow ramp, 0.01 rad a step from time zero on, and answers after `latencies` in turn."""

    def __init__(self, clock, latencies, length=16) -> None:
        self.clock, self.latencies, self.length = clock, latencies, length
        self.asked: list = []
        self.waiting = None

    def start(self, observation) -> None:
        assert self.waiting is None, "one request at a time"
        joints = observation["joints"]
        first = round(float(joints.reshape(-1, 7)[-1, 0]) * RATE)
        chunk = np.zeros((self.length, 7))
        chunk[:, 0] = 0.01 * (first + np.arange(self.length))
        latency = self.latencies[len(self.asked) % len(self.latencies)]
        self.asked.append(observation)
        result = Result(None, latency, 0.0) if isinstance(latency, Exception) else Result(chunk, None, latency)
        self.waiting = (self.clock.now() + result.seconds, result)

    def poll(self):
        if self.waiting is None or self.clock.now() < self.waiting[0] - 1e-9:
            return None
        (_, result), self.waiting = self.waiting, None
        return result

    def close(self) -> None:
        pass


class Seeker:
    """Goes straight to the goal that it sees, `[B, 16, 2]`."""

    batch_sizes = (1, 4)

    def __init__(self, size: int = 4, tasks=("left", "right", "up"), rate_hz: float | None = None) -> None:
        self.manifest = Manifest(
            name="seeker", policy="none", stage="spo", history=1,
            observation=(Entry("state", "lowdim", (size,), "float32"),),
            action=Action(2, 16, 8, ("x", "y"), (-1.0, -1.0), (1.0, 1.0), "moves", rate_hz),
            sampling={"temperature": 0, "top_k": 0}, tasks=tuple(Task(name, f"go {name}") for name in tasks),
            limits=None, provenance={}, files={},
        )  # fmt: skip

    def warm_up(self) -> None:
        pass

    def act(self, observation, task, episode_keys, decision_index):
        way = observation["state"][:, 2:] - observation["state"][:, :2]
        steps = np.maximum(1.0, np.abs(way).max(-1, keepdims=True) / SPEED)
        left = np.clip(steps[:, None] - np.arange(16)[None, :, None], 0.0, 1.0)  # then it stays
        return (left * (way / steps / SPEED)[:, None]).astype(np.float32)

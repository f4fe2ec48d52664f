"""A robot's driver as an environment: chunks of actions at the robot's rate, success from a person or a function."""

import time
from collections.abc import Callable, Mapping

import numpy as np

from cso_jax.envs.protocol import ChunkResult, InitState, Observation
from cso_jax.runtime.manifest import Action, Manifest
from cso_jax.runtime.observer import Observer
from cso_jax.runtime.operator import Operator
from cso_jax.runtime.robot import Robot
from cso_jax.runtime.safety import EmergencyStop, Safety
from cso_jax.runtime.schema import Schema

Judge = Callable[[Mapping[str, np.ndarray], str], bool]
"""Whether an observation shows a task done: a success that no person has to see."""


class DrivenRobot:
    """Satisfies `cso_jax.envs.protocol.Environment`, but for one thing: a reset is what a person makes of it.

    The robot moves at `schema.commands.rate_hz` by the monotonic clock; a period that is over is not made up for. Each
    command goes through `Safety` with the schema's limits. Success is the operator's button, or `judge`'s word.
    """

    def __init__(
        self,
        robot: Robot,
        schema: Schema,
        operator: Operator,
        *,
        position_of: Callable[[Mapping[str, np.ndarray]], np.ndarray],
        judge: Judge | None = None,
        go_home: Callable[[], None] = lambda: None,
        ready_s: float = 600.0,
        emergency: Callable[[], bool] = lambda: False,
        view: Observer | None = None,
    ) -> None:
        """`position_of` reads from an observation the command `[A]`, in units, that keeps the robot where it is;
        `go_home` moves it to where episodes begin; `ready_s` is how long an operator may take to lay a scene;
        `view` is told what happens, by the monotonic clock."""
        self._robot, self._schema, self._operator = robot, schema, operator
        self._position_of, self._judge, self._go_home, self._ready_s = position_of, judge, go_home, ready_s
        self._period = 1.0 / schema.commands.rate_hz
        self._low, self._high = np.asarray(schema.commands.low), np.asarray(schema.commands.high)
        self._safety = Safety(_as_manifest(schema), self._period, emergency)
        self._task = ""
        self._view = view or Observer()
        self._view.watch("safety", self._safety.said)

    def reset(self, init: InitState, *, record: bool = False) -> ChunkResult:
        """Ask the operator for the scene of `init`, wait until it is ready. `record` gives no frames.

        Raises TimeoutError, Aborted, EmergencyStop.
        """
        self._safety.check()
        sentence = next((task.sentence for task in self._schema.tasks if task.name == init.task), init.task)
        self._go_home()
        self._operator.begin(f"lay the scene: {sentence} ({init.name})", self._ready_s)
        self._operator.announce(f"running: {sentence} ({init.name})")
        self._task = init.task
        self._view.episode(sentence)
        observation = self._observe()
        self._safety.begin(self._position_of(observation))
        return ChunkResult(observation, False, False, 0, 0.0, 0.0)

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Execute `actions` `[E, A]` in [-1, 1]. Raises Aborted (the robot holds), EmergencyStop (it is stopped)."""
        began = time.monotonic()
        success, steps = None, 0
        paused_s = 0.0
        try:
            for number, action in enumerate(np.clip(np.asarray(actions, np.float64), -1.0, 1.0)):
                paused_s += self._operator.wait_while_paused(self._held, self._period)
                time.sleep(max(0.0, began + paused_s + number * self._period - time.monotonic()))
                allowed = self._safety.filter(self._low + (action + 1.0) / 2.0 * (self._high - self._low))
                if allowed.action is None:
                    self._robot.hold()
                else:
                    self._robot.command(allowed.action)
                    self._view.command(allowed.action, time.monotonic(), seam=number == 0)
                steps += 1
                success = self._operator.verdict()
                if success is not None:
                    break
            time.sleep(max(0.0, began + paused_s + steps * self._period - time.monotonic()))
            observation = self._observe()
        except EmergencyStop:
            self._robot.stop()
            raise
        except BaseException:
            self._robot.hold()
            raise
        if success is None and self._judge is not None and self._judge(observation, self._task):
            success = True
        if success is not None:
            self._robot.hold()
            self._view.outcome(bool(success))
        return ChunkResult(observation, bool(success), success is not None, steps, time.monotonic() - began, 0.0)

    def close(self) -> None:
        """Come to rest."""
        self._robot.hold()

    def _held(self) -> None:
        """One period of a pause, in which an emergency stop counts too."""
        self._safety.check()
        self._robot.hold()

    def _observe(self) -> Observation:
        seen, made = self._robot.observe()
        self._view.observe(seen, made)
        return {entry.name: np.asarray(seen[entry.name], entry.dtype) for entry in self._schema.observation}


def _as_manifest(schema: Schema) -> Manifest:
    """What `Safety` reads of a manifest."""
    commands = schema.commands
    return Manifest(
        name=schema.name, policy="", stage="", history=1, observation=schema.observation,
        action=Action(len(commands.names), 1, 1, commands.names, commands.low, commands.high, commands.units,
                      commands.rate_hz),
        sampling={"temperature": 0.0, "top_k": 0.0}, tasks=schema.tasks, limits=schema.limits, provenance={}, files={},
    )  # fmt: skip

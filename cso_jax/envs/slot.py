"""The loop that every environment runs: an episode in chunks of actions, its end, its video, its times.

A benchmark brings a `SlotSimulation`, which knows one robot in its world and nothing of chunks; `Slot` makes an
`Environment` of it.
"""

import time
from collections import deque
from typing import Protocol

import numpy as np

from cso_jax.envs.protocol import ChunkResult, EvalInit, InitState, Observation, TrainInit


class SlotSimulation(Protocol):
    """One robot that can be put into any initial state of its benchmark, then stepped and looked at.

    Between `begin` and `end` it holds what the episode needs: a simulator from a pool, a place in a shared scene.
    One whose tasks have stages may say in an attribute `stages` which have been done, for `ChunkResult`; it is read
    after `end` too.
    """

    def horizon(self, task: str) -> int:
        """Simulator steps after which an episode of `task` ends. May raise ValueError for an unknown task."""

    def begin(self, init: InitState) -> Observation | None:
        """Put `init` in; the first observation where that is not what `observe` gives. Raises ValueError for an
        unknown task."""

    def step(self, action: np.ndarray) -> bool:
        """Execute `action` `[A]` float32 within [-1, 1]; whether the task is solved now."""

    def observe(self) -> Observation:
        """What the policy sees now; cameras are drawn here."""

    def frame(self) -> np.ndarray | None:
        """A video frame uint8 `[V, V, 3]`, None if this machine cannot draw."""

    def end(self) -> None:
        """Give back what the episode held. May be called at any time, and again."""


class Slot:
    """Runs one episode at a time in a simulation. Satisfies `cso_jax.envs.protocol.Environment`."""

    def __init__(
        self,
        simulation: SlotSimulation,
        *,
        action_dim: int,
        video_every: int,
        last_frame: bool = True,
        history: int = 1,
    ) -> None:
        """A slot on `simulation`, which nobody else may use.

        Args:
          simulation: the robot and its world.
          action_dim: A, the length of an action.
          video_every: simulator steps between the frames of a video.
          last_frame: whether a video ends with the end of the episode, whatever its step.
          history: N, the simulator steps that an observation shows. With N > 1 each of its entries is `[N, ...]`,
            oldest first; the first observation takes the place of those before it.
        """
        self.simulation = simulation
        self._action_dim = action_dim
        self._video_every = video_every
        self._last_frame = last_frame
        self._seen: deque[Observation] = deque(maxlen=history)
        self._history = history
        self._horizon = 0
        self._step = 0
        self._record = False
        self._running = False

    def reset(self, init: InitState, *, record: bool = False) -> ChunkResult:
        """Start an episode from `init`.

        Raises ValueError for an unknown task, TypeError for an initial state without a split.
        """
        if not isinstance(init, TrainInit | EvalInit):
            raise TypeError(f"an initial state is a TrainInit or an EvalInit, got {init!r}")
        self.close()
        self._horizon = self.simulation.horizon(init.task)
        self._record, self._step = record, 0
        clock = _Clock()
        first = self.simulation.begin(init)
        clock.stepped()
        if first is None:
            first = self.simulation.observe()
        self._seen.extend([first] * self._history)
        frames = self._film() if record else []
        clock.drawn()
        self._running = True
        return self._result(clock, frames, success=False, done=False, steps=0)

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Execute `actions` `[E, A]`, clipped to [-1, 1], until they are used up, success, or the horizon.

        Only what will be handed out is looked at: after an early success, which ends the episode, the older entries of
        a history may be of earlier steps than the last ones. No decision is made from them.

        Raises ValueError for another shape or numbers that are not finite (then nothing was executed), RuntimeError
        if no episode is under way.
        """
        actions = self._checked(actions)
        if not self._running:
            raise RuntimeError("no episode is under way: it has ended, or was never reset")
        success = done = False
        frames: list[np.ndarray] = []
        before, last = self._step, min(self._step + len(actions), self._horizon)
        clock = _Clock()
        for action in np.clip(actions, -1.0, 1.0):
            success = self.simulation.step(action)
            self._step += 1
            done = success or self._step >= self._horizon
            clock.stepped()
            if done or last - self._step < self._history:
                self._seen.append(self.simulation.observe())
            if self._record and (self._step % self._video_every == 0 or (done and self._last_frame)):
                frames += self._film()
            clock.drawn()
            if done:
                break
        if done:
            self.close()
        taken = self._step - before
        return self._result(clock, frames, success=success, done=done, steps=taken)

    def close(self) -> None:
        """End the episode under way, if any."""
        self._running = False
        self.simulation.end()

    def _result(
        self, clock: "_Clock", frames: list[np.ndarray], *, success: bool, done: bool, steps: int
    ) -> ChunkResult:
        stages = tuple(getattr(self.simulation, "stages", ()))
        return ChunkResult(self._observation(), success, done, steps, clock.physics_s, clock.render_s, frames, stages)

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        actions = np.asarray(actions, np.float32)
        if actions.ndim != 2 or actions.shape[1] != self._action_dim or len(actions) == 0:
            raise ValueError(f"actions must have shape [E, {self._action_dim}] with E > 0, got {list(actions.shape)}")
        if not np.isfinite(actions).all():
            raise ValueError("actions hold numbers that are not finite")
        return actions

    def _observation(self) -> Observation:
        if self._history == 1:
            return self._seen[-1]
        return {key: np.stack([seen[key] for seen in self._seen]) for key in self._seen[-1]}

    def _film(self) -> list[np.ndarray]:
        frame = self.simulation.frame()
        return [] if frame is None else [frame]


class _Clock:
    """Shares the time that passes out among stepping and drawing, by what has just been done."""

    def __init__(self) -> None:
        self.physics_s = self.render_s = 0.0
        self._since = time.perf_counter()

    def stepped(self) -> None:
        self.physics_s += self._lap()

    def drawn(self) -> None:
        self.render_s += self._lap()

    def _lap(self) -> float:
        since, self._since = self._since, time.perf_counter()
        return self._since - since

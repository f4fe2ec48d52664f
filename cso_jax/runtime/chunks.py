"""Which action belongs to which control step, while chunks arrive late. Pure NumPy, no clock, no JAX.

Control steps are numbered. Action i of a chunk that was planned from the observation of step s is meant for step s + i:
by the time it arrives some of its first actions are past, and are skipped. Letters: T actions of a chunk, E of them
before the next decision, A action size.
"""

import math
from collections import deque

import numpy as np


class ChunkSchedule:
    """The chunk in use, the one before it as long as the two are blended, and when to ask for the next."""

    def __init__(self, horizon: int, blend: int = 0, blended: np.ndarray | None = None) -> None:
        """`horizon` E. `blend`: over how many steps a new chunk takes over linearly; `blended` bool `[A]`: in which
        dimensions (None: all); a gripper that opens or closes is better switched."""
        self._horizon = horizon
        self._blend = blend
        self._blended = blended
        self._start = 0
        self._chunk: np.ndarray | None = None
        self._before: tuple[int, np.ndarray] | None = None
        self._taken = 0
        self.seams = 0
        self.seam_largest = 0.0
        """How often a chunk took over from one that still had actions, and by how much the two differed at most."""

    def receive(self, chunk: np.ndarray, observed: int, now: int) -> bool:
        """Take over a chunk `[T, A]` that was planned from step `observed`; `now` is the next step to execute.

        False, and nothing changes, where all of it is past.
        """
        if now - observed >= len(chunk) or now < observed:
            return False
        old = self._of(self._chunk, self._start, now)
        if old is not None and self._chunk is not None:
            self.seams += 1
            self.seam_largest = max(self.seam_largest, float(np.abs(old - chunk[now - observed]).max()))
            self._before = (self._start, self._chunk)
        else:
            self._before = None
        self._chunk, self._start, self._taken = chunk, observed, now
        return True

    def action(self, step: int) -> np.ndarray | None:
        """The action `[A]` of a step; None where no chunk reaches it."""
        new = self._of(self._chunk, self._start, step)
        passed = step - self._taken
        if new is None or self._before is None or passed >= self._blend:
            return new
        old = self._of(self._before[1], self._before[0], step)
        if old is None:
            return new
        share = (passed + 1) / (self._blend + 1)
        mixed = (1 - share) * old + share * new
        return mixed if self._blended is None else np.where(self._blended, mixed, new)

    def wants(self, step: int, lead: int) -> bool:
        """Whether to ask for the next chunk now, if it takes `lead` steps to come."""
        return self._chunk is None or self._start + self._horizon - step <= lead

    def clear(self) -> None:
        """Forget the chunks: an episode has ended."""
        self._chunk = self._before = None

    @staticmethod
    def _of(chunk: np.ndarray | None, start: int, step: int) -> np.ndarray | None:
        return chunk[step - start] if chunk is not None and 0 <= step - start < len(chunk) else None


class LatencyEstimate:
    """How many control steps an answer takes: the longest of the last few, since a stall costs more than a fresh plan
    that comes early."""

    def __init__(self, period_s: float, kept: int = 8) -> None:
        self._period_s = period_s
        self._seconds: deque[float] = deque(maxlen=kept)

    def add(self, seconds: float) -> None:
        """An answer took this long, from the observation on."""
        self._seconds.append(max(0.0, seconds))

    @property
    def steps(self) -> int:
        """Whole control steps, 0 before the first answer."""
        return math.ceil(max(self._seconds, default=0.0) / self._period_s - 1e-9)

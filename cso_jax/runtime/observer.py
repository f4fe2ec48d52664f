"""What a loop that drives a robot tells whoever watches. No JAX."""

from collections.abc import Callable, Mapping

import numpy as np


class Observer:
    """Is told, and does nothing with it; `runtime.view.View` shows it. Times in seconds of one clock that only grows.

    It is called between commands: a method that takes long makes them late, and one that raises stops the robot.
    """

    def episode(self, sentence: str) -> None:
        """Another one begins; `sentence` is what its task asks for."""

    def observe(self, seen: Mapping[str, np.ndarray], when: float) -> None:
        """What the robot saw, entries as in the manifest."""

    def command(self, action: np.ndarray, when: float, *, seam: bool) -> None:
        """What was sent, `[A]` in units; `seam`: the first action of another chunk."""

    def answer(self, seconds: float) -> None:
        """The policy's answer took this long."""

    def watch(self, source: str, counts: Callable[[], Mapping[str, int]]) -> None:
        """`counts()` may be asked at any time, from any thread, what has been counted so far; it replaces that of the
        same source before."""

    def outcome(self, success: bool) -> None:
        """The episode has ended."""

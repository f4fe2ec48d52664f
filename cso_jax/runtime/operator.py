"""The person beside a robot: ready, success, failure, pause, abort, as buttons of a small page or keys. No JAX."""

import html
import secrets
import threading
import time

BUTTONS = {
    "ready": "the scene is laid: begin",
    "success": "the task is done",
    "failure": "give this episode up",
    "pause": "hold",
    "resume": "go on",
    "abort": "this episode does not count: once more",
}


class Aborted(RuntimeError):
    """The operator took an episode back; it is to be begun again."""


class Operator:
    """What the operator has pressed, for the loop that drives the robot; safe from any thread.

    `announce` is what is asked of the person now; it is shown on the page. `key` is part of the page's address, so
    that no other page of a browser can press its buttons.
    """

    def __init__(self) -> None:
        self.key = secrets.token_urlsafe(8)
        self.notice = "no episode yet"
        self._changed = threading.Condition()
        self._ready = self._paused = self._aborted = False
        self._verdict: bool | None = None

    def press(self, button: str) -> None:
        """A button of BUTTONS. Raises KeyError for another."""
        if button not in BUTTONS:
            raise KeyError(button)
        with self._changed:
            if button == "ready":
                self._ready = True
            elif button in ("success", "failure"):
                self._verdict = button == "success"
            elif button in ("pause", "resume"):
                self._paused = button == "pause"
            else:
                self._aborted = True
            self._changed.notify_all()

    def announce(self, text: str) -> None:
        """Say what is going on."""
        self.notice = text

    def begin(self, text: str, timeout_s: float) -> None:
        """Ask for the scene and wait for "ready". Raises TimeoutError, Aborted."""
        self.announce(text)
        with self._changed:
            self._ready, self._verdict, self._aborted = False, None, False
            if not self._changed.wait_for(lambda: self._ready or self._aborted, timeout_s):
                raise TimeoutError(f"nobody pressed ready within {timeout_s:g} s")
            self._raise_if_aborted()

    def verdict(self) -> bool | None:
        """True and False once the operator has said so, None before. Raises Aborted."""
        with self._changed:
            self._raise_if_aborted()
            return self._verdict

    def wait_while_paused(self, hold, period_s: float) -> float:
        """Call `hold()` every period while it is paused; returns the seconds that it took. Raises Aborted."""
        began = time.monotonic()
        paused = False
        while True:
            with self._changed:
                self._raise_if_aborted()
                if not self._paused or self._verdict is not None:
                    return time.monotonic() - began if paused else 0.0
                paused = True
            hold()
            time.sleep(period_s)

    def page(self) -> str:
        """The page: what is asked for, and the buttons. It asks anew every two seconds."""
        buttons = "".join(
            f'<a href="/operator/{self.key}/{name}">{name}</a> {html.escape(meaning)}<br><br>'
            for name, meaning in BUTTONS.items()
        )
        return (
            "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>"
            f"<meta http-equiv=refresh content='2;url=/operator/{self.key}'><title>cso_jax robot</title>"
            "<style>body{font:20px sans-serif;margin:2em}"
            "a{display:inline-block;min-width:6em;padding:.4em;border:1px solid}</style>"
            f"<h1>{html.escape(self.notice)}</h1>{buttons}"
        )

    def _raise_if_aborted(self) -> None:
        if self._aborted:
            self._aborted = False
            raise Aborted("the operator took this episode back; it is begun again")

"""Where the time of a run goes: every second booked under one phase."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cso_jax.files import PathLike, atomic_write_text
from cso_jax.telemetry.console import log, warn

CACHE_HIT = "/jax/compilation_cache/cache_hits"
COMPILE_EVENTS = "/jax/core/compile/"  # tracing, lowering and backend compilation all start with this


class PhaseClock:
    """Books every second of one thread under exactly one phase; seconds outside any phase are "other".

    Nested phases take their time from the enclosing one, so the phases add up to the wall-clock time since the clock
    was made. Only the thread that made the clock is timed: what other threads do overlaps with it.
    """

    def __init__(self) -> None:
        self.programs = 0  # compiled, or taken from JAX's cache, while compilation was watched
        self.recalled = 0  # those of them that the cache had
        self._booked: dict[str, float] = {}
        self._saved: dict[str, float] = {}
        self._stack: list[str] = []
        self._since = time.perf_counter()
        self._thread = threading.get_ident()
        self._spans: list[tuple[float, float]] = []
        self._listeners: tuple[Callable[..., None], Callable[..., None]] | None = None
        self._log_above = float("inf")

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase up to now, phases that are still open included."""
        self._flush()
        return {name: max(0.0, value) for name, value in self._booked.items()}

    def snapshot(self) -> dict[str, float]:
        """A copy of `seconds`; the difference of two snapshots is the time between them."""
        return self.seconds

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Books the time inside the `with` block under `name`, less what nested phases take."""
        if threading.get_ident() != self._thread:
            yield
            return
        self._flush()
        self._stack.append(name)
        try:
            yield
        finally:
            self._flush()
            self._stack.pop()

    def add(self, name: str, seconds: float, *, move: bool = True) -> None:
        """Books `seconds`, measured elsewhere, under `name`.

        They are moved there from the phase that is open now; `move=False` adds them on top, for time that did not
        pass in this thread, at the price that the phases no longer add up to the wall-clock time.
        """
        self._flush()
        if move:
            self._book(self._stack[-1] if self._stack else "other", -seconds)
        self._book(name, seconds)

    def watch_compilation(self, log_above: float = float("inf")) -> None:
        """Moves the time JAX spends tracing, lowering and compiling to the phase "compile" from now on.

        Backend compilations of `log_above` seconds or more are logged with the name of the program.
        """
        import jax.monitoring

        self._log_above = log_above
        if self._listeners is None:
            self._listeners = (self._on_duration, self._on_event)
            jax.monitoring.register_event_duration_secs_listener(self._listeners[0])
            jax.monitoring.register_event_listener(self._listeners[1])

    def unwatch_compilation(self) -> None:
        """Ends `watch_compilation`."""
        import jax.monitoring

        if self._listeners is not None:
            jax.monitoring.unregister_event_duration_listener(self._listeners[0])
            jax.monitoring.unregister_event_listener(self._listeners[1])
            self._listeners = None

    def save(self, path: PathLike, stage: str) -> None:
        """Adds what was booked since the last save to `stage` in the JSON file at `path`, atomically.

        The file holds {stage: {phase: seconds}} and so sums over stages, saves and resumed runs.
        """
        now = self.snapshot()
        passed = {name: value - self._saved.get(name, 0.0) for name, value in now.items()}
        # Phases of earlier stages stay in the clock, but take no more time.
        add_to(path, stage, {name: value for name, value in passed.items() if value > 0})
        self._saved = now

    def _flush(self) -> None:
        if threading.get_ident() != self._thread:
            return
        now = time.perf_counter()
        self._book(self._stack[-1] if self._stack else "other", now - self._since)
        self._since = now

    def _book(self, name: str, seconds: float) -> None:
        self._booked[name] = self._booked.get(name, 0.0) + seconds

    def _on_event(self, event: str, **details: Any) -> None:
        if event == CACHE_HIT and threading.get_ident() == self._thread:
            self.recalled += 1

    def _on_duration(self, event: str, duration_secs: float, **details: Any) -> None:
        if not event.startswith(COMPILE_EVENTS) or threading.get_ident() != self._thread:
            return
        # Programs traced inside another one end first; the outer event repeats their time, which is booked once only.
        start = time.perf_counter() - duration_secs
        inner = 0.0
        while self._spans and self._spans[-1][0] >= start:
            inner += self._spans.pop()[1]
        self._spans.append((start, duration_secs))
        del self._spans[:-4096]  # a large program traces thousands of smaller ones
        self.add("compile", max(0.0, duration_secs - inner))
        if "backend_compile" not in event:
            return
        self.programs += 1
        if duration_secs >= self._log_above:
            log(f"compiled {details.get('fun_name', 'a program')} in {duration_secs:.1f} s")


def add_to(path: PathLike, entry: str, amounts: Mapping[str, float]) -> None:
    """Adds `amounts` to an entry of an account, a JSON file of sums `{entry: {name: number}}`, atomically."""
    account = load_account(path)
    sums = account.setdefault(entry, {})
    for name, amount in amounts.items():
        sums[name] = round(sums.get(name, 0.0) + amount, 4)
    atomic_write_text(path, json.dumps(account, indent=1) + "\n")


def load_account(path: PathLike) -> dict[str, dict[str, float]]:
    """Returns {entry: {name: number}} from `path`; {} where the file is missing or unreadable."""
    try:
        account = json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        warn(f"{path} is not JSON; what earlier runs took is lost from the account")
        return {}
    return account if isinstance(account, dict) else {}

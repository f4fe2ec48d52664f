"""Signals: the first one asks a run to save and stop, and whatever comes after, the process ends within seconds.

Python runs signal handlers between two instructions of the main thread, which can be minutes away: XLA compiles, or a
library joins a thread. So the signals are read by a thread of their own, from the file that the interpreter's C handler
writes to.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from cso_jax import telemetry

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C, a cluster's end of job, a closed terminal, a cluster's warning: all of them save and stop."""

GRACE_S = 8.0
_ONE_SIGNAL_S = 0.05  # a launcher hands on the signal that the whole group has got already
_OUTPUT_S = 0.5  # what a line of log may take
EXIT_INTERRUPTED, EXIT_STOPPED = 130, 143


class Received:
    """The signals that came so far."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    @property
    def exit_status(self) -> int | None:
        """130 after SIGINT, 143 after any other, None while there is none; the first signal decides."""
        if not self.numbers:
            return None
        return EXIT_INTERRUPTED if self.numbers[0] == signal.SIGINT else EXIT_STOPPED


@contextlib.contextmanager
def stop_on_signals(stop: threading.Event, *, grace_s: float = GRACE_S) -> Iterator[Received]:
    """Within the `with` block a first signal sets `stop`; a second one, or `grace_s` later, ends the process at once.

    Ending at once kills the child processes and leaves what is on disk as it is: every write is atomic. Nothing is
    changed where the caller is not the main thread, which alone may handle signals. SIGHUP stays ignored under nohup.
    """
    received = Received()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
    watcher = threading.Thread(
        target=_watch, args=(ours, stop, received, grace_s, terminals), name="signals", daemon=True
    )
    heard = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    previous = {number: signal.signal(number, _noted) for number in heard}
    watcher.start()
    try:
        yield received
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in previous.items():
            signal.signal(number, handler)
        theirs.close()  # which ends the watcher
        watcher.join(1.0)
        ours.close()


def _noted(_number: int, _frame: Any) -> None:
    """A handler must be there, or the interpreter would not write to the wakeup file."""


def _watch(
    ours: socket.socket, stop: threading.Event, received: Received, grace_s: float, terminals: list[int]
) -> None:
    first = last = 0.0
    while True:
        ours.settimeout(max(0.001, first + grace_s - time.monotonic()) if received.numbers else None)
        try:
            data = ours.recv(64)
        except TimeoutError:
            _leave(received, f"still busy after {grace_s:g} s: leaving at once")
        if not data:
            return
        for number in data:
            if number not in SIGNALS:
                continue
            now = time.monotonic()
            if number == signal.SIGHUP:
                _let_go(terminals)
            name = signal.Signals(number).name
            received.numbers.append(number)
            if len(received.numbers) == 1:
                first = now
                stop.set()
                _briefly(telemetry.log, f"{name}: saving, then stopping; once more to leave at once")
            elif number != received.numbers[-2] or now - last > _ONE_SIGNAL_S:
                _leave(received, f"{name}: leaving at once")
            last = time.monotonic()


def _let_go(terminals: list[int]) -> None:
    """Have what still goes to a terminal that was closed go nowhere: writing to it would raise in whoever logs."""
    for descriptor in terminals:
        if not os.isatty(descriptor):
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), descriptor)


def _leave(received: Received, why: str) -> NoReturn:
    try:
        _briefly(telemetry.log, f"{why}; what was saved before is kept, run the same command to go on")
        kill_children()
    finally:
        os._exit(received.exit_status or EXIT_STOPPED)


def _briefly(write: Callable[..., None], *arguments: str) -> None:
    """Write to stdout or stderr, but do not wait for a reader that does not read, nor mind one that is gone."""

    def attempt() -> None:
        with contextlib.suppress(OSError, ValueError):
            write(*arguments)

    writer = threading.Thread(target=attempt, daemon=True)
    writer.start()
    writer.join(_OUTPUT_S)


def kill_children() -> None:
    """Kill every process that this one has started, and theirs."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()


def end_process(status: int) -> NoReturn:
    """End without waiting for threads that libraries have started, as an ordinary exit would, nor hearing them."""
    sys.excepthook = lambda *_: None
    threading.excepthook = lambda _: None
    sys.unraisablehook = lambda _: None
    logging.disable()
    for stream in (sys.stdout, sys.stderr):
        _briefly(stream.flush)
    os._exit(status)

"""Signals: the first one asks a run to save and stop, and whatever comes after, the process ends within seconds.

Python runs signal handlers between two instructions of the main thread, which can be minutes away: XLA compiles, or a
library joins a thread. So the signals are read by a thread of their own, from the file that the interpreter's C handler
writes to.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

from cso_jax import telemetry

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Ctrl-C, a cluster's end of job, a closed terminal, a cluster's warning: all of them save and stop."""

GRACE_S = 8.0
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
    changed where the caller is not the main thread, which alone may handle signals.
    """
    received = Received()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(ours, stop, received, grace_s), name="signals", daemon=True)
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # under nohup a closed terminal is nothing
    watched = [number for number in SIGNALS if not (ignored and number == signal.SIGHUP)]
    previous = {number: signal.signal(number, _noted) for number in watched}
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
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


def _watch(ours: socket.socket, stop: threading.Event, received: Received, grace_s: float) -> None:
    while True:
        ours.settimeout(grace_s if received.numbers else None)
        try:
            data = ours.recv(64)
        except TimeoutError:
            _leave(received, f"still busy after {grace_s:g} s: leaving at once")
            return
        if not data:
            return
        for number in data:
            if number not in SIGNALS:
                continue
            received.numbers.append(number)
            name = signal.Signals(number).name
            if len(received.numbers) == 1:
                stop.set()
                telemetry.log(f"{name}: saving, then stopping; once more to leave at once")
            else:
                _leave(received, f"{name}: leaving at once")


def _leave(received: Received, why: str) -> None:
    telemetry.log(f"{why}; what was saved before is kept, run the same command to go on")
    kill_children()
    end_process(received.exit_status or EXIT_STOPPED)


def kill_children() -> None:
    """Kill every process that this one has started, and theirs."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def end_process(status: int) -> None:
    """End without waiting for threads that libraries have started, as an ordinary exit would."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)

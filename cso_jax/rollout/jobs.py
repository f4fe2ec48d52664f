"""Function calls in processes of their own that can be killed at once: for work that an executor could not stop.

`concurrent.futures` waits for the call that runs when it shuts down, and again when the interpreter ends; a scripted
demonstration can take a minute.
"""

import contextlib
import dataclasses
import itertools
import multiprocessing.connection
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, Self

from cso_jax.rollout.episodes import Interrupted
from cso_jax.rollout.worker import end_with_parent, exit_reason, refused, spawn_surroundings

_STOP_POLL_S = 0.2
_SIGNAL_GRACE_S = 2.0


class JobError(RuntimeError):
    """A call raised: `kind` names the exception's type, the message is its own, a note holds the traceback."""

    def __init__(self, kind: str, message: str, trace: str) -> None:
        super().__init__(f"{kind}: {' '.join(message.split())}")
        self.kind = kind
        self.add_note("In the worker process:\n" + trace)


class ProcessDied(RuntimeError):
    """The process of a call ended, or was killed; the message says how. `memory`: there may have been too little."""

    def __init__(self, exitcode: int | None) -> None:
        super().__init__(f"ended with {exit_reason(exitcode)}")
        self.memory = exitcode == -signal.SIGKILL


@dataclasses.dataclass(eq=False)
class Job:
    """One call. Its outcome is there once `done`."""

    function: Callable[..., Any]
    arguments: tuple
    done: bool = False
    value: Any = None
    error: Exception | None = None


class _Process:
    def __init__(self, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), name=f"job-{number}", daemon=True)
        self.job: Job | None = None
        with spawn_surroundings(keep_main=False):
            self.process.start()
        theirs.close()


class JobProcesses:
    """`count` processes that take jobs in the order in which they were submitted. A context manager.

    Leaving it kills them. Call it from one thread; functions and arguments must be picklable, functions by name.
    """

    def __init__(self, count: int, *, stop: Callable[[], bool] | None = None) -> None:
        """`stop` is asked while a result is waited for."""
        self._count = count
        self._stop = stop or (lambda: False)
        self._numbers = itertools.count()
        self._processes: list[_Process] = []
        self._waiting: deque[Job] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._processes:
            one.process.kill()
        for one in self._processes:
            one.process.join(5)
            one.connection.close()
        self._processes = []

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Job:
        job = Job(function, arguments)
        self._waiting.append(job)
        self._hand_out()
        return job

    def cancel(self, job: Job) -> None:
        """Take back a job that has not begun; the result of one that has is thrown away."""
        with contextlib.suppress(ValueError):
            self._waiting.remove(job)

    def result(self, job: Job) -> Any:
        """The value of a job, when it is there.

        Raises JobError if the call raised, ProcessDied if its process ended, Interrupted if `stop` returned true.
        """
        while not job.done:
            if self._stop():
                raise Interrupted("stopped while a job was running")
            self._hand_out()
            busy = {one.connection: one for one in self._processes if one.job is not None}
            for ready in multiprocessing.connection.wait(list(busy), _STOP_POLL_S):
                self._take(busy[ready])  # type: ignore[index]
        if job.error is not None:
            raise job.error
        return job.value

    def _hand_out(self) -> None:
        while self._waiting:
            idle = next((one for one in self._processes if one.job is None), None)
            if idle is None:
                if len(self._processes) >= self._count:
                    return
                try:
                    idle = _Process(next(self._numbers))
                except OSError as error:
                    raise refused(error, "config.demos.processes") from None
                self._processes.append(idle)
            idle.job = self._waiting.popleft()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # found out when the answer is read
                idle.connection.send((idle.job.function, idle.job.arguments))

    def _take(self, one: _Process) -> None:
        job, one.job = one.job, None
        assert job is not None
        try:
            kind, *rest = one.connection.recv()
        except (EOFError, OSError):
            one.process.join(5)
            self._processes.remove(one)
            job.error = ProcessDied(one.process.exitcode)
            # A terminal or a cluster sends a signal to the whole group: then this process is about to stop as well.
            if one.process.exitcode in (-signal.SIGTERM, -signal.SIGHUP, -signal.SIGUSR1, -signal.SIGINT):
                self._wait_for_stop()
        else:
            if kind == "value":
                job.value = rest[0]
            else:
                job.error = JobError(*rest)
        job.done = True

    def _wait_for_stop(self) -> None:
        pause = threading.Event()
        for _ in range(int(_SIGNAL_GRACE_S / _STOP_POLL_S)):
            if self._stop():
                raise Interrupted("stopped while a job was running")
            pause.wait(_STOP_POLL_S)


def _serve(connection: Any) -> None:
    """In the process: carry out calls until the pipe closes or the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent decides
    end_with_parent()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            function, arguments = connection.recv()
            try:
                answer: tuple = ("value", function(*arguments))
            except Exception as error:
                # Text only: an exception object may not survive pickling.
                answer = ("error", type(error).__name__, str(error), traceback.format_exc())
            connection.send(answer)

"""One simulator process: the loop that runs inside it, and the handle by which the pool starts, feeds and kills it.

Both ends of the pipe live here so that the protocol can be read in one place. The pool sends a list of commands, the
process executes them in order and answers once for the whole list, with a `Reply` or a `Failure`. A process has at
most one list outstanding, so neither side can block the other.
"""

import contextlib
import dataclasses
import logging
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, Literal

import numpy as np
import psutil

from cso_jax.envs.protocol import ChunkResult, Environment, InitState
from cso_jax.rollout.episodes import RolloutError

MakeEnvironments = Callable[[dict[str, Any], int], list[Environment]]
"""A top-level function `(settings, count) -> count environments`, called inside the worker process."""

Command = tuple[int, Literal["reset"], InitState, bool] | tuple[int, Literal["step"], np.ndarray]
"""`(slot, "reset", init, record)` or `(slot, "step", actions [E, A])`."""

CLOSE = "close"

# A simulator gains nothing from a threaded BLAS, and W workers with a thread per core each slow one another down.
SINGLE_THREADED = {
    name: "1"
    for name in (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
    )
}

# A factory that raises one of these says that the settings or the installation are wrong: trying again cannot help.
HOPELESS_IN_FACTORY = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    NotImplementedError,
    AssertionError,
    FileNotFoundError,
)

TIMEOUT, DIED = "WorkerTimeout", "WorkerDied"
_LONGEST_LINE = 120  # of a failure: the error line also names the episode and what to do

_logger = logging.getLogger(__name__)
_start_lock = threading.Lock()


@dataclasses.dataclass
class Reply:
    """Every result of one message, in command order (none when the environments have just been built), and the RSS."""

    results: list[tuple[int, ChunkResult]]
    rss: int


@dataclasses.dataclass
class Failure:
    """Why a message was not carried out: an exception in the factory or an environment, a dead or a late process.

    `position` is the index of the command that was being executed, None where that is unknown. `starting` is true
    while the environments were being built. `fatal` failures must not be tried again. `memory`: the process was killed
    as one is that takes too much of it.
    """

    type_name: str
    message: str
    traceback: str = ""
    position: int | None = None
    starting: bool = False
    fatal: bool = False
    memory: bool = False

    @property
    def line(self) -> str:
        """Type and message on one short line; the traceback has the rest."""
        line = " ".join(f"{self.type_name}: {self.message}".split())
        return line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 3] + "..."

    @property
    def remedy(self) -> str:
        """What a person can do."""
        if self.type_name == TIMEOUT:
            key = "start_timeout_s" if self.starting else "step_timeout_s"
            return f"if the simulator is only slow, raise config.rollout.{key}"
        if self.type_name == DIED and not self.memory:
            return "the simulator crashed: what was finished is kept, run the same command again"
        if self.memory or self.type_name == "MemoryError":
            return "lower config.rollout.workers or config.rollout.slots; what was finished is kept"
        return "mend the cause and run the same command again: what was finished is kept"


# ---------------------------------------------------------------------------------------------------------- inside


def serve(
    connection: Connection, make_environments: MakeEnvironments, settings: dict[str, Any], slots: int, progress: Any
) -> None:
    """Run a worker until a close message or the end of the parent process.

    `progress.value` is shared with the parent: 1 + the index of the command being executed, 0 between messages.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    environments: list[Environment] = []
    try:
        try:
            environments = list(make_environments(settings, slots))
            if len(environments) != slots:
                raise ValueError(f"the environment factory gave {len(environments)} environments, asked for {slots}")
            answer: Reply | Failure = Reply([], psutil.Process().memory_info().rss)
        except Exception as error:
            hopeless = isinstance(error, HOPELESS_IN_FACTORY)
            answer = _describe(error, starting=True, fatal=hopeless)
        connection.send(answer)
        while (message := connection.recv()) != CLOSE:
            connection.send(_execute(environments, message, progress))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        _logger.debug("the parent process is gone")
    finally:
        for environment in environments:
            try:
                environment.close()
            except Exception:
                _logger.debug("closing an environment failed", exc_info=True)


def _execute(environments: Sequence[Environment], commands: Sequence[Command], progress: Any) -> Reply | Failure:
    results: list[tuple[int, ChunkResult]] = []
    for position, command in enumerate(commands):
        progress.value = position + 1
        try:
            if command[1] == "reset":
                result = environments[command[0]].reset(command[2], record=command[3])
            else:
                result = environments[command[0]].step_chunk(command[2])
        except Exception as error:
            return _describe(error, position=position)
        results.append((command[0], result))
    progress.value = 0
    return Reply(results, psutil.Process().memory_info().rss)


def end_with_parent() -> None:
    """In a process that was started here: end when the parent has, which may have been killed, whatever runs."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _describe(error: Exception, *, position: int | None = None, starting: bool = False, fatal: bool = False) -> Failure:
    # Text only: an exception object may not survive pickling, or may need modules that the parent does not have.
    fatal = fatal or bool(getattr(error, "fatal", False))
    return Failure(type(error).__name__, str(error), traceback.format_exc(), position, starting, fatal)


# --------------------------------------------------------------------------------------------------------- outside


class WorkerProcess:
    """The parent's handle on one worker process, started on construction and busy until its environments are built."""

    def __init__(
        self,
        make_environments: MakeEnvironments,
        settings: dict[str, Any],
        slots: int,
        *,
        name: str,
        start_timeout_s: float,
        command_timeout_s: float,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.commands: Sequence[Command] = ()
        self.busy = True
        self.starting = True
        self._timeout_s = command_timeout_s
        self._start_timeout_s = start_timeout_s
        self._progress = context.RawValue("i", 0)
        self._seen = 0
        self._process = context.Process(
            target=serve, args=(theirs, make_environments, settings, slots, self._progress), name=name, daemon=True
        )
        try:
            with spawn_surroundings(keep_main=make_environments.__module__ == "__main__"):
                self._process.start()
        except BaseException:  # Ctrl-C: nobody else holds this process yet
            if self._process.pid is not None:
                self._process.kill()
            raise
        finally:
            theirs.close()  # else the end of the worker would never be seen as EOF here
        self.deadline = time.monotonic() + start_timeout_s

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def send(self, commands: Sequence[Command]) -> None:
        """Hand over one message. A process that has died meanwhile is found out by the next `receive`."""
        self.commands = commands
        self.busy = True
        self._seen = 1  # the first command, which runs from now on
        self.deadline = time.monotonic() + self._timeout_s
        try:
            self.connection.send(commands)
        except (BrokenPipeError, ConnectionResetError):
            _logger.debug("%s was gone before a message reached it", self._process.name)

    def receive(self) -> Reply | Failure:
        """The answer to the outstanding message; blocks until there is one. A dead process gives a Failure."""
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            self._process.join(5)
            exitcode = self._process.exitcode
            message = f"the process ended with {exit_reason(exitcode)}"
            answer = Failure(DIED, message, "", self._position(), self.starting, memory=exitcode == -signal.SIGKILL)
        self.busy = False
        if isinstance(answer, Reply):
            self.starting = False
        return answer

    def overdue(self) -> Failure | None:
        """A Failure if the current command is past its deadline; call only where no answer can be read."""
        if time.monotonic() < self.deadline:
            return None
        position = self._progress.value
        if position != self._seen:  # it got further since the last look: the deadline is per command
            self._seen = position
            self.deadline = time.monotonic() + self._timeout_s
            return None
        self.busy = False
        if self.starting:
            message = f"the environments were not ready after {self._start_timeout_s:g} s"
        else:
            message = f"no answer within {self._timeout_s:g} s"
        return Failure(TIMEOUT, message, "", self._position(), self.starting)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._release(5)

    def ask_to_close(self) -> None:
        """Begin an orderly end; `finish` completes it. A busy process is killed, since it cannot listen."""
        if self.busy:
            self._process.kill()
            return
        try:
            self.connection.send(CLOSE)
        except OSError:
            _logger.debug("%s was gone before it was closed", self._process.name)

    def finish(self, grace_s: float) -> None:
        """Wait up to `grace_s` for an orderly end, then kill."""
        self._process.join(grace_s)
        if self._process.is_alive():  # for instance a GL context that hangs while it is torn down
            self._process.kill()
        self._release(5)

    def _release(self, timeout_s: float) -> None:
        self._process.join(timeout_s)
        self.connection.close()
        if self._process.exitcode is not None:
            self._process.close()

    def _position(self) -> int | None:
        executing = self._progress.value
        return executing - 1 if 0 < executing <= len(self.commands) else None


def refused(error: OSError, key: str) -> RolloutError:
    """What to say where the system grants no further process or pipe; `key` of the config asks for so many."""
    reason = error.strerror or type(error).__name__
    return RolloutError(f"no further process can be started ({reason}): lower {key}, or raise ulimit -n and -u")


def exit_reason(exitcode: int | None) -> str:
    if exitcode is None:
        return "a closed pipe"
    if exitcode >= 0:
        return f"exit code {exitcode}"
    try:
        hint = " (often out of memory)" if exitcode == -signal.SIGKILL else ""
        return f"signal {signal.Signals(-exitcode).name}{hint}"
    except ValueError:
        return f"signal {-exitcode}"


@contextlib.contextmanager
def spawn_surroundings(*, keep_main: bool) -> Iterator[None]:
    """What a worker inherits while it starts; the parent's own state is put back afterwards.

    Besides single-threaded libraries: `spawn` imports the parent's `__main__` into each child, which here would load
    JAX into every simulator process, so an empty `__main__` stands in (unless the factory itself is defined there).
    SIGINT stays blocked in the child from birth, so Ctrl-C during its imports prints no traceback.
    """
    multiprocessing.resource_tracker.ensure_running()  # its first start would unblock SIGINT again
    with _start_lock:
        environ = {name: os.environ.get(name) for name in SINGLE_THREADED}
        main = sys.modules["__main__"]
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            os.environ.update(SINGLE_THREADED)
            if not keep_main:
                sys.modules["__main__"] = types.ModuleType("__main__")
            yield
        finally:
            sys.modules["__main__"] = main
            for name, value in environ.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

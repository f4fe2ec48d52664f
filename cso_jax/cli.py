"""What all commands share: a locked workdir, signals that are heard, and every expected error as one line."""

import contextlib
import errno
import fcntl
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

from cso_jax import telemetry
from cso_jax.files import expanded
from cso_jax.programs import keep_programs
from cso_jax.stopping import EXIT_STOPPED, end_process, stop_on_signals
from cso_jax.telemetry import library_log

EXIT_ERROR = 1
_FULL = ("No space left on device", "Disk quota exceeded")
LONGEST_LINE = 299  # of an error, in characters


def folder_of(text: str) -> Path:
    """The folder that --workdir names: the shell leaves the "~" of --workdir=~/runs as it is."""
    from cso_jax import config as configs

    folder = expanded(text)
    if text.startswith("~") and str(folder).startswith("~"):
        raise configs.ConfigError(f"--workdir={text}: no such home folder is known here; give the whole path")
    return folder


def supervised(config, workdir: Path, work) -> int:
    """Call `work(stop)` with the workdir locked, signals handled and every expected error as one line.

    Returns the exit status. `stop` is an event that a signal sets. What libraries say goes to `workdir/log.txt`, long
    explanations to `workdir/errors.log`.
    """
    stop = threading.Event()
    with stop_on_signals(stop) as received, library_log.threads_to(workdir / "log.txt"):
        status = _supervised(config, workdir, work, stop)
        return received.exit_status or status


def _supervised(config, workdir: Path, work, stop: threading.Event) -> int:
    from cso_jax import config as configs
    from cso_jax import envs
    from cso_jax.checkpoints import CheckpointError
    from cso_jax.data.store import StoreError
    from cso_jax.envs import gl
    from cso_jax.rollout.episodes import RolloutError
    from cso_jax.run import RunError, Stopped

    expected = (configs.ConfigError, RunError, RolloutError, StoreError, CheckpointError)
    details = workdir / "errors.log"
    problem = _workdir_problem(workdir) or device_problem()
    if problem:
        return fail(RunError(problem))
    try:
        with locked(workdir), library_log.libraries_to(workdir / "log.txt"):
            telemetry.log(f"workdir {workdir}")
            keep_programs()
            if envs.needs_gl(config.env.to_dict()):
                try:
                    gl.require_gl(config.env.obs)
                except RuntimeError as error:
                    if _stopping(stop):  # a terminal's signal ends the probe too
                        raise Stopped("its first checks") from None
                    return fail(error, details)
            work(stop)
    except expected as error:
        notes = getattr(error, "__notes__", [])
        if notes:
            with contextlib.suppress(OSError), open(details, "a") as file:  # the disk may be full
                file.write("\n".join([str(error), *notes]) + "\n")
                error = RunError(f"{error} (details: {details})")
        return fail(error, details)
    except Stopped as where:
        telemetry.log(f"stopped in {where}; everything finished is saved, run the same command to go on")
        return EXIT_STOPPED
    except Exception as error:
        if not no_write(error):
            if not _stopping(stop):
                raise
            with contextlib.suppress(OSError), open(details, "a") as file:
                traceback.print_exception(error, file=file)
            telemetry.log("stopped; what was saved before is kept, run the same command to go on")
            return EXIT_STOPPED
        return fail(
            RunError(
                f"cannot write to {workdir}: {first_line(error)}; free some space or choose another --workdir, then "
                "run the same command again: nothing that was saved is lost"
            )
        )
    return 0


def _stopping(stop: threading.Event) -> bool:
    """Whether a signal came. What it breaks, such as a child process that got it too, may be noticed before it is."""
    return stop.wait(0.2)


def _workdir_problem(workdir: Path) -> str:
    """Why `workdir` cannot be a folder to write to; empty if it can. Makes it."""
    try:
        if workdir.exists() and not workdir.is_dir():
            return f"{workdir} is a file; --workdir must be a folder, or a new name"
        workdir.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        return f"cannot write to {workdir}: {first_line(error)}; choose another --workdir"
    return ""


def device_problem() -> str:
    """Why JAX has no device to compute on; empty if it has one."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # both come when the platform that is asked for is not there
        wanted = os.environ.get("JAX_PLATFORMS", "")
        reason = f" ({first_line(error)[:100]})" if str(error) else ""
        asked = f"JAX_PLATFORMS={wanted}, and JAX finds no such device here" if wanted else "JAX finds no device"
        return f"{asked}{reason}: unset JAX_PLATFORMS, set it to cpu, or install JAX for it (pip install -e '.[cuda]')"
    return ""


def no_write(error: Exception) -> bool:
    """Whether a full or read-only disk is behind an error: libraries wrap it in types of their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return True
    return any(text in str(error) for text in _FULL)


def first_line(error: Exception) -> str:
    """What an error says, as short as it is understood."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    for text in _FULL:
        if text in str(error):
            return text
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def fail(error: Exception, details: Path | None = None) -> int:
    """Write the error to stderr, one line of at most LONGEST_LINE characters per problem; returns the exit status.

    A longer line loses its middle: the problem is at its beginning, what to do at its end. The whole of it then goes to
    the file `details`, if there is one.
    """
    whole = [f"error: {line.rstrip()}" for line in str(error).splitlines() if line.strip()]
    whole = whole or [f"error: {type(error).__name__}"]
    lines = [_shortened(line) for line in whole]
    if details is not None and lines != whole:
        with contextlib.suppress(OSError), open(details, "a") as file:  # the error itself may be a full disk
            file.write("\n".join(whole) + "\n")
            telemetry.log(f"the whole message is in {details}")
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()
    return EXIT_ERROR


def _shortened(line: str) -> str:
    if len(line) <= LONGEST_LINE:
        return line
    mark, tail = " [...] ", 140
    return line[: LONGEST_LINE - tail - len(mark)] + mark + line[-tail:]


def run_command(command) -> None:
    """End the process with what `command()` returns; after a signal or an error without waiting for anything else.

    What libraries still do at an exit, such as writing their files to a full disk, would follow the error line.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    status = command()
    if status:
        end_process(status)
    sys.exit(status)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Hold the workdir for this process. Raises RunError when another process has it."""
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            from cso_jax.run import RunError

            raise RunError(
                f"{workdir} is in use by {holder}; wait for it, stop it, or choose another --workdir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield

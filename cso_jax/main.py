"""Cascaded Skills Optimization, end to end:

    python -m cso_jax.main --config=configs/quickstart.py [--workdir=DIR] [--config.key=value ...]

demonstrations -> codebook -> imitation -> R-SFT -> freeze the encoder -> SPO, with an evaluation after each policy and
a report at the end. Start the same command again after an interruption and it goes on where it was.
"""

import contextlib
import errno
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

if __name__ == "__main__":
    # Until the signals are taken over Ctrl-C ends the process, as SIGTERM does: a KeyboardInterrupt in the midst of an
    # import can land in a callback, which swallows it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from cso_jax import telemetry
from cso_jax.files import expanded
from cso_jax.stopping import EXIT_INTERRUPTED, EXIT_STOPPED, end_process, stop_on_signals
from cso_jax.telemetry import library_log

USAGE = "python -m cso_jax.main --config=configs/quickstart.py [--workdir=DIR] [--config.key=value ...]"
EXIT_ERROR = 1
LONGEST_LINE = 299  # of an error, in characters


def cascade(config, workdir: Path, stop=None) -> Path:
    """Run every stage of `config` that `workdir` does not hold yet; returns the report's path."""
    # The simulators are loaded only once the arguments are known to be good.
    from cso_jax import config as configs
    from cso_jax import report
    from cso_jax.evaluation import run_evaluation
    from cso_jax.report import videos
    from cso_jax.run import open_run
    from cso_jax.stages import codebook, demos, imitation, provenance, rsft
    from cso_jax.stages.spo import stage as spo

    run = open_run(config, workdir, stop)
    run.clock.watch_compilation(log_above=5.0)
    timing = workdir / "timing.json"

    def step(name, function, *arguments):
        try:
            function(run, *arguments)
        finally:
            run.clock.save(timing, name)

    def stage(name, function, *arguments):
        provenance.begin(config, workdir, name)
        step(name, function, *arguments)
        provenance.finish(config, workdir, name)

    try:
        # 1. The QueST base policy: demonstrations, skill codebook (Eq. 1), skill prior (Eq. 2).
        stage("demos", demos.run_stage)
        stage("codebook", codebook.run_stage)
        stage("imitation", imitation.run_stage)
        step("evaluate imitation", run_evaluation, "imitation")
        latest = "imitation"

        # 2. R-SFT: fine-tune on the policy's own successes (Eq. 6), then freeze the encoder.
        if config.rsft.enabled:
            stage("rsft", rsft.run_stage)
            step("evaluate rsft", run_evaluation, "rsft")
            latest = "rsft"

        # 3. SPO: groups from one initial state, a clipped ratio per skill (Eq. 7-9).
        if config.spo.enabled:
            stage("spo", spo.run_stage, latest)
            step("evaluate spo", run_evaluation, "spo")
            latest = "spo"

        # 4. What came of it.
        step("report", videos.run_stage, latest)
        page = report.build(workdir)
        telemetry.show(report.text_tables(workdir))
        telemetry.log(f"report: {page}")
        growing = (f"--config.{key} (now {configs.flatten(config)[key]})" for key in provenance.GROWING)
        telemetry.log(f"the same command with a larger {' or '.join(growing)} goes on from here")
        return page
    finally:
        run.close()


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0, 1 after an error, 130 after SIGINT, 143 after another signal."""
    from cso_jax import config as configs  # and with it JAX: a signal meanwhile must find `run_command`

    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options, overrides = configs.split_arguments(arguments)
        if "help" in options:
            telemetry.show(USAGE)
            return 0
        unknown = sorted(options.keys() - {"config", "workdir"})
        if unknown or "config" not in options:
            problem = f"unknown option --{unknown[0]}" if unknown else "--config is missing"
            raise configs.ConfigError(f"{problem}; usage: {USAGE}")
        config = configs.load(options["config"], overrides)
        scale = "" if config.scale == "full" else f"_{config.scale}"
        workdir = folder_of(options.get("workdir") or f"runs/{config.name}{scale}_seed{config.seed}")
    except configs.ConfigError as error:
        return fail(error)
    return supervised(config, workdir, lambda stop: cascade(config, workdir, stop))


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
    with stop_on_signals(stop) as received:
        status = _supervised(config, workdir, work, stop)
        return received.exit_status or status


def _supervised(config, workdir: Path, work, stop: threading.Event) -> int:
    from cso_jax import config as configs
    from cso_jax import envs
    from cso_jax.checkpoints import CheckpointError
    from cso_jax.data.store import StoreError
    from cso_jax.envs import gl
    from cso_jax.rollout.episodes import RolloutError
    from cso_jax.run import RunError, Stopped, locked

    expected = (configs.ConfigError, RunError, RolloutError, StoreError, CheckpointError)
    details = workdir / "errors.log"
    problem = _workdir_problem(workdir) or device_problem()
    if problem:
        return fail(RunError(problem))
    try:
        with locked(workdir), library_log.libraries_to(workdir / "log.txt"):
            telemetry.log(f"workdir {workdir}")
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
        if not _no_write(error):
            if not _stopping(stop):
                raise
            with contextlib.suppress(OSError), open(details, "a") as file:
                traceback.print_exception(error, file=file)
            telemetry.log("stopped; what was saved before is kept, run the same command to go on")
            return EXIT_STOPPED
        return fail(
            RunError(
                f"cannot write to {workdir}: {_first_line(error)}; free some space or choose another --workdir, then "
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
        return f"cannot write to {workdir}: {_first_line(error)}; choose another --workdir"
    return ""


def device_problem() -> str:
    """Why JAX has no device to compute on; empty if it has one."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # both come when the platform that is asked for is not there
        wanted = os.environ.get("JAX_PLATFORMS", "")
        reason = f" ({_first_line(error)[:100]})" if str(error) else ""
        asked = f"JAX_PLATFORMS={wanted}, and JAX finds no such device here" if wanted else "JAX finds no device"
        return f"{asked}{reason}: unset JAX_PLATFORMS, set it to cpu, or install JAX for it (pip install -e '.[cuda]')"
    return ""


def _no_write(error: Exception) -> bool:
    """Whether a full or read-only disk is behind an error: libraries wrap it in types of their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return True
    return any(text in str(error) for text in ("No space left on device", "Disk quota exceeded"))


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
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
    """End the process with what `command()` returns; after a signal without waiting for anything else."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    status = command()
    if status in (EXIT_INTERRUPTED, EXIT_STOPPED):
        end_process(status)
    sys.exit(status)


if __name__ == "__main__":
    run_command(main)

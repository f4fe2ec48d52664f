"""Cascaded Skills Optimization, end to end:

    python -m cso_jax.main --config=configs/quickstart.py [--workdir=DIR] [--config.key=value ...]

demonstrations -> codebook -> imitation -> R-SFT -> freeze the encoder -> SPO, with an evaluation after each policy and
a report at the end. Start the same command again after an interruption and it goes on where it was.
"""

import errno
import os
import signal
import sys
import threading
from pathlib import Path

from cso_jax import telemetry
from cso_jax.stopping import EXIT_INTERRUPTED, EXIT_STOPPED, end_process, stop_on_signals

USAGE = "python -m cso_jax.main --config=configs/quickstart.py [--workdir=DIR] [--config.key=value ...]"
EXIT_ERROR = 1


def cascade(config, workdir: Path, stop=None) -> Path:
    """Run every stage of `config` that `workdir` does not hold yet; returns the report's path."""
    # The simulators are loaded only once the arguments are known to be good.
    from cso_jax import config as configs
    from cso_jax import report
    from cso_jax.evaluation import run_evaluation
    from cso_jax.report import videos
    from cso_jax.stages import codebook, demos, imitation, provenance, rsft, spo
    from cso_jax.stages.run import open_run

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
        growing = (f"--config.{key}={configs.flatten(config)[key]}" for key in provenance.GROWING)
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
    except configs.ConfigError as error:
        return fail(error)
    scale = "" if config.scale == "full" else f"_{config.scale}"
    workdir = Path(options.get("workdir") or f"runs/{config.name}{scale}_seed{config.seed}")
    return supervised(config, workdir, lambda stop: cascade(config, workdir, stop))


def supervised(config, workdir: Path, work) -> int:
    """Call `work(stop)` with the workdir locked, signals handled and every expected error as one line.

    Returns the exit status. `stop` is an event that a signal sets.
    """
    stop = threading.Event()
    with stop_on_signals(stop) as received:
        status = _supervised(config, workdir, work, stop)
        return received.exit_status or status


def _supervised(config, workdir: Path, work, stop: threading.Event) -> int:
    from cso_jax import config as configs
    from cso_jax.checkpoints import CheckpointError
    from cso_jax.data.store import StoreError
    from cso_jax.envs import gl
    from cso_jax.rollout.episodes import RolloutError
    from cso_jax.stages.run import RunError, Stopped, locked

    expected = (configs.ConfigError, RunError, RolloutError, StoreError, CheckpointError)
    if workdir.exists() and not workdir.is_dir():
        return fail(RunError(f"{workdir} is a file; --workdir must be a folder, or a new name"))
    try:
        with locked(workdir):
            telemetry.log(f"workdir {workdir}")
            if config.env.name != "fake":  # which draws with numpy
                try:
                    gl.configure_gl(config.env.obs)
                except RuntimeError as error:
                    return fail(error)
            work(stop)
    except expected as error:
        notes = getattr(error, "__notes__", [])
        if notes:
            details = workdir / "errors.log"
            with open(details, "a") as file:
                file.write("\n".join([str(error), *notes]) + "\n")
            error = RunError(f"{error} (details: {details})")
        return fail(error)
    except Stopped as where:
        telemetry.log(f"stopped in {where}; everything finished is saved, run the same command to go on")
        return EXIT_STOPPED
    except Exception as error:
        if not _no_write(error):
            raise
        return fail(
            RunError(
                f"cannot write to {workdir}: {_first_line(error)}; free some space or choose another --workdir, then "
                "run the same command again: nothing that was saved is lost"
            )
        )
    return 0


def _no_write(error: Exception) -> bool:
    """Whether a full or read-only disk is behind an error: libraries wrap it in types of their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return True
    return any(text in str(error) for text in ("No space left on device", "Disk quota exceeded"))


def _first_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def fail(error: Exception) -> int:
    """Write the error to stderr, one line per problem; returns the exit status."""
    for line in str(error).splitlines():
        sys.stderr.write((line if line.startswith(" ") else f"error: {line}") + "\n")
    return EXIT_ERROR


def run_command(command) -> None:
    """End the process with what `command()` returns; after a signal without waiting for anything else."""
    # Until the signals are taken over Ctrl-C ends the process, as SIGTERM does: a KeyboardInterrupt in the midst of an
    # import can land in a callback, which swallows it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    status = command()
    if status in (EXIT_INTERRUPTED, EXIT_STOPPED):
        end_process(status)
    sys.exit(status)


if __name__ == "__main__":
    run_command(main)

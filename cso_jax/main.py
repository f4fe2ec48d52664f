"""Cascaded Skills Optimization, end to end:

    python -m cso_jax.main --config=configs/quickstart.py [--workdir=DIR] [--config.key=value ...]

demonstrations -> codebook -> imitation -> R-SFT -> freeze the encoder -> SPO, with an evaluation after each policy and
a report at the end. Start the same command again after an interruption and it goes on where it was.
"""

import os
import signal
import sys
import threading

if __name__ == "__main__":
    # Until the signals are taken over Ctrl-C ends the process, as SIGTERM does: a KeyboardInterrupt in the midst of an
    # import can land in a callback, which swallows it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from cso_jax import telemetry
from cso_jax.cli import fail, folder_of, run_command, supervised

USAGE = (
    "python -m cso_jax.main --config=configs/quickstart.py [--workdir=DIR] [--processes=HOST:PORT,COUNT,NUMBER] "
    "[--config.key=value ...]"
)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0, 1 after an error, 130 after SIGINT, 143 after another signal."""
    from cso_jax import config as configs  # and with it JAX: a signal meanwhile must find `run_command`

    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options, overrides = configs.split_arguments(arguments)
        if "help" in options:
            telemetry.show(USAGE)
            return 0
        unknown = sorted(options.keys() - {"config", "workdir", "processes"})
        if unknown or "config" not in options:
            problem = f"unknown option --{unknown[0]}" if unknown else "--config is missing"
            raise configs.ConfigError(f"{problem}; usage: {USAGE}")
        config = configs.load(options["config"], overrides)
        scale = "" if config.scale == "full" else f"_{config.scale}"
        workdir = folder_of(options.get("workdir") or f"runs/{config.name}{scale}_seed{config.seed}")
    except configs.ConfigError as error:
        return fail(error)
    if "processes" in options:
        return _one_of_several(config, workdir, options["processes"])

    def work(stop):
        # The simulators are loaded only once the arguments are known to be good.
        from cso_jax.cascade import run_cascade

        run_cascade(config, workdir, stop)

    return supervised(config, workdir, work)


def _one_of_several(config, workdir, text: str) -> int:
    """The run as one of its processes; a follower's log goes to a file, and it stops when the leader does."""
    from cso_jax.processes import Meeting, ProcessesError, join

    try:
        processes = join(text)
    except ProcessesError as error:
        return fail(error)
    meeting, own = Meeting(processes, workdir), processes.folder(workdir)
    if not processes.leads:
        own.mkdir(parents=True, exist_ok=True)
        with open(own / "output.txt", "a") as file:
            os.dup2(file.fileno(), sys.stderr.fileno())

    def work(stop):
        from cso_jax.cascade import run_cascade

        run_cascade(config, own, stop if processes.leads else threading.Event(), meeting)

    status = supervised(config, own, work)
    meeting.leave(status)
    return status


if __name__ == "__main__":
    run_command(main)

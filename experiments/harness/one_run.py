"""One run of an experiment in a process of its own: start from shared stages, run the cascade, measure. Not for hands.

    PYTHONPATH=experiments python -m harness.one_run JSON < pipe        JSON: see `runner.Plan`

Ends (after saving, like any run that gets SIGTERM) when the pipe closes: a killed runner leaves no run behind.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from cso_jax import config as configs
from cso_jax import telemetry
from cso_jax.cli import fail, run_command
from cso_jax.files import atomic_write_text
from cso_jax.main import main as train
from harness import workdirs


def run_job(job: dict[str, Any]) -> int:
    """Do what the job says; returns the exit status of the first part that fails, else 0."""
    workdir = Path(job["workdir"])
    overrides = [(key, value) for key, value in job["overrides"]]
    with workdirs.exclusive(workdir):
        if job["rounds"] > 1:
            return _run_rounds(job, workdir, overrides)
        if job["base"] is not None:
            workdirs.prepare(workdir, Path(job["base"]), configs.load(job["suite"], overrides), job["notes"])
        else:
            workdir.mkdir(parents=True, exist_ok=True)
            if not (workdir / "experiment.json").exists():
                atomic_write_text(workdir / "experiment.json", json.dumps(job["notes"], indent=1))
        status = _cascade(job, workdir, overrides)
        if status == 0 and job["log_ratios"] and not (workdir / "log_ratios.npz").exists():
            from harness import log_ratios

            return log_ratios.measure_run(workdir)
        return status


def _cascade(job: dict[str, Any], workdir: Path, overrides: list[tuple[str, str]]) -> int:
    arguments = [f"--config={job['suite']}", f"--workdir={workdir}"]
    return train(arguments + [f"--config.{key}={value}" for key, value in [*overrides, *job["neutral"]]])


def _run_rounds(job: dict[str, Any], workdir: Path, overrides: list[tuple[str, str]]) -> int:
    """R-SFT and SPO in turns; then the last policy is evaluated as the two-stage run's is."""
    base, notes = Path(job["base"]), job["notes"]
    before = None
    for number, changes in enumerate(job["round_overrides"]):
        place = workdir / f"round_{number + 1}"
        workdirs.prepare_round(place, base, before, notes)
        telemetry.log(f"round {number + 1} of {job['rounds']}")
        status = _cascade(job, place, _replaced(overrides, changes))
        if status:
            return status
        before = place
    last = workdir / "last"
    workdirs.prepare_round(last, base, before, notes)
    return _cascade(job, last, _replaced(overrides, [("rsft.enabled", "false"), ("spo.enabled", "false")]))


def _replaced(overrides: list[tuple[str, str]], changes: list) -> list[tuple[str, str]]:
    return list((dict(overrides) | {key: value for key, value in changes}).items())


def _end_with_the_pipe() -> None:
    os.read(0, 1)  # the runner writes nothing: this returns when the pipe has lost its writer
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """The command line; returns the exit status."""
    threading.Thread(target=_end_with_the_pipe, daemon=True).start()
    try:
        return run_job(json.loads(sys.argv[1]))
    except configs.ConfigError as error:
        return fail(error)


if __name__ == "__main__":
    run_command(main)

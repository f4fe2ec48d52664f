"""The runner that all experiments share: a command line, one base run per seed, the variants beside it, the outputs.

    OUT/base/seed_S            demonstrations, codebook, imitation, R-SFT and their evaluations, shared by all scripts
    OUT/runs/NAME-MARK/seed_S  one variant: starts from the base's stages that its config leaves as they were
    OUT/<script>/              results.jsonl, table.{txt,csv,tex}, plots

MARK is the config's fingerprint, so two scripts that ask for the same run share it. Every run is an ordinary workdir:
killed at any moment, the same command goes on where it was.
"""

import concurrent.futures
import dataclasses
import inspect
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from cso_jax import config as configs
from cso_jax import telemetry, versions
from cso_jax.cli import fail, run_command
from cso_jax.files import rewrite_jsonl
from cso_jax.stopping import EXIT_INTERRUPTED, EXIT_STOPPED, stop_on_signals
from harness import plots, results, tables
from harness.options import DEFAULT_SUITE, Options, parse, usage
from harness.plans import MakeVariants, Plan, make_plans
from harness.variants import Variant


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One claim of the paper. The first paragraph of `claim` is the table's title.

    `variants(config)` makes the rows for a suite's config; `reference` is the name of the one that the others are
    compared with. `finish(outcome)` draws and tabulates beyond the standard table and plots, or in their place where
    `standard` is False. `base` says whether the variants start from base runs, which go as far as R-SFT. `log_ratios`
    keeps per-episode log-ratios of every SPO run (see harness/log_ratios.py). `suite` is the config that it runs where
    none is given.
    """

    name: str
    claim: str
    variants: MakeVariants
    reference: str
    paper_columns: Sequence[str] = ()
    note: str = ""
    standard: bool = True
    base: bool = True
    log_ratios: bool = False
    finish: Callable[["Outcome"], None] | None = None
    suite: str = DEFAULT_SUITE

    @property
    def title(self) -> str:
        return " ".join(inspect.cleandoc(self.claim).split("\n\n")[0].split())


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an experiment found: rows of finished runs by variant name, and where its outputs go."""

    experiment: Experiment
    options: Options
    variants: Sequence[Variant]
    rows: Mapping[str, Sequence[results.Row]]
    folder: Path


_GRACE_S = 9.5  # a moment more than the runs have to save and stop

Launch = Callable[[Plan, Options, str | None, threading.Event], int]
"""`(plan, options, commit, stop) -> exit status` of one run; `stop` asks it to save and end."""


def launch(one: Plan, options: Options, commit: str | None, stop: threading.Event) -> int:
    """Run one plan in a process of its own, its output to `<workdir>.log`; returns its exit status."""
    one.workdir.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(options.out / "compiled"))
    scripts = str(Path(__file__).parents[1])  # importable in the child as here, where a script is run
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (scripts, environment.get("PYTHONPATH"))))
    if options.jobs > 1:
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # runs share the accelerator's memory
    with open(log_of(one), "ab") as log:
        # The pipe is never written to: its end tells the child that this process is gone.
        child = subprocess.Popen(
            [sys.executable, "-m", "harness.one_run", one.job(options, commit)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a terminal's Ctrl-C is for the runner, whose end of the pipe tells the run
        )
        assert child.stdin is not None
        while child.poll() is None:
            if stop.wait(0.2):
                child.stdin.close()
                return child.wait()
        return child.returncode


def _make_folder(path: Path) -> None:
    """Raises ConfigError where the folder cannot be made or written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise configs.ConfigError(f"--out must be a folder to write to; {path}: {error.strerror}") from None


def log_of(one: Plan) -> Path:
    return one.workdir.with_name(one.workdir.name + ".log")


def _failure(one: Plan, status: int) -> str:
    lines = log_of(one).read_text(errors="replace").splitlines() if log_of(one).exists() else []
    said = next((line for line in reversed(lines) if line.startswith("error:")), lines[-1] if lines else "no output")
    name = one.workdir.parent.name + "/" + one.workdir.name
    return f"{name} ended with status {status}: {said.removeprefix('error: ')} (log: {log_of(one)})"


class Stopped(Exception):
    """A signal asked the experiment to stop; its runs have saved and ended."""


def execute(plans: Sequence[Plan], options: Options, run: Launch, description: str, stop: threading.Event) -> list[str]:
    """Run what is not done, `options.jobs` at a time; returns one line per run that failed. Raises Stopped."""
    waiting = [one for one in plans if not one.done]
    if not waiting:
        return []
    commit = versions.commit()
    failures: list[str] = []

    def work(one: Plan) -> tuple[Plan, int, float]:
        started = time.monotonic()
        return one, run(one, options, commit, stop), time.monotonic() - started

    executor = concurrent.futures.ThreadPoolExecutor(options.jobs)
    bar: telemetry.Progress[None] = telemetry.progress(
        len(plans), description, unit="run", initial=len(plans) - len(waiting)
    )
    try:
        futures = [executor.submit(work, one) for one in waiting]
        for future in _as_completed(futures, stop):
            one, status, seconds = future.result()
            name = f"{one.workdir.parent.name} seed {one.seed}"
            if status in (EXIT_INTERRUPTED, EXIT_STOPPED):
                raise Stopped
            if status:
                failures.append(_failure(one, status))
                telemetry.warn(failures[-1])
            elif not one.done:
                failures.append(f"{name} ended without an error but is not complete (log: {log_of(one)})")
                telemetry.warn(failures[-1])
            else:
                text = telemetry.duration_text(seconds)
                telemetry.log(f"{name}: finished after {text}")
            bar.update()
    except BaseException:
        stop.set()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        bar.close()
    return failures


def _as_completed(futures: list, stop: threading.Event) -> Iterator:
    """As concurrent.futures.as_completed. Raises Stopped once `stop` is set."""
    pending = set(futures)
    while pending:
        if stop.is_set():
            raise Stopped
        done, pending = concurrent.futures.wait(pending, 0.2, concurrent.futures.FIRST_COMPLETED)
        yield from done


def gather(cells: Sequence[Plan], experiment: Experiment, options: Options) -> dict[str, list[results.Row]]:
    """Rows by variant name of the runs that have finished."""
    rows: dict[str, list[results.Row]] = {one.variant.name: [] for one in cells}
    for one in cells:
        if not one.done:
            continue
        place, stage = one.result
        upstream = [one.base] if one.rounds and one.base is not None else []
        row = results.row_of(place, stage, others=one.rounds, upstream=upstream)
        if row is None:
            continue
        head = {
            "experiment": experiment.name,
            "suite": options.suite.stem,
            "scale": options.scale,
            "variant": one.variant.name,
            "label": one.variant.label,
            "seed": one.seed,
            "changes": dict(one.variant.changes),
        }
        rows[one.variant.name].append(head | row)
    return rows


def write(outcome: Outcome) -> tables.Table | None:
    """results.jsonl, tables and plots of an experiment."""
    experiment, folder = outcome.experiment, outcome.folder
    stored = [
        row | {"workdir": os.path.relpath(row["workdir"], outcome.options.out), "outcomes": results.outcomes_of(row)}
        for rows in outcome.rows.values()
        for row in rows
    ]
    rewrite_jsonl(folder / "results.jsonl", stored)
    commits = {row["commit"] for row in stored}
    if len(commits) > 1:
        telemetry.log(f"these runs were made at {len(commits)} commits: {', '.join(sorted(map(str, commits)))}")
    table = None
    if experiment.standard:
        title = f"Claim: {experiment.title} Suite {outcome.options.suite.stem}, scale {outcome.options.scale}."
        table = tables.compare(
            title, outcome.variants, outcome.rows,
            reference=experiment.reference, paper_columns=experiment.paper_columns, note=experiment.note,
        )  # fmt: skip
        table.write(folder)
        plots.success(folder / "success.png", outcome.variants, outcome.rows)
        plots.curves(folder / "curves.png", outcome.variants, outcome.rows)
    if experiment.finish is not None:
        experiment.finish(outcome)
    return table


def main(experiment: Experiment, arguments: Sequence[str] | None = None, *, run: Launch = launch) -> int:
    """The command line of an experiment; returns 0, 1 where something failed, 130 or 143 when stopped."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments:
        telemetry.show(f"{inspect.cleandoc(experiment.claim)}\n\n{usage(experiment.name, experiment.suite)}")
        return 0
    try:
        options = parse(experiment.name, arguments, experiment.suite)
        configs.load(options.suite)  # before the folder is made
        _make_folder(options.out)
        bases, cells, chosen = make_plans(
            experiment.variants, options, log_ratios=experiment.log_ratios, needs_base=experiment.base
        )
    except configs.ConfigError as error:
        return fail(error)
    based = {one.workdir for one in bases}
    runs = list({one.workdir: one for one in cells if one.workdir not in based}.values())
    telemetry.log(
        f"{experiment.name}: {len(bases)} base runs and {len(runs)} of {len(chosen)} variants, "
        f"{sum(one.done for one in [*bases, *runs])} finished before; {options.jobs} at a time, in {options.out}"
    )
    stop = threading.Event()
    with stop_on_signals(stop, grace_s=_GRACE_S) as received:
        try:
            failures = execute(bases, options, run, "base runs", stop)
            ready = {one.workdir for one in bases if one.done}
            failures += execute(
                [one for one in runs if one.base in ready or not experiment.base], options, run, "variants", stop
            )
        except Stopped:
            telemetry.log("stopped; what was saved is kept, run the same command to go on")
            return received.exit_status or EXIT_INTERRUPTED
    rows = gather(cells, experiment, options)
    outcome = Outcome(experiment, options, chosen, rows, options.out / experiment.name)
    table = write(outcome)
    if table is not None:
        telemetry.show(table.as_text())
    telemetry.log(f"results: {outcome.folder}")
    return fail(configs.ConfigError("\n".join(failures))) if failures else 0


def start(experiment: Experiment) -> None:
    """What a script does when it is run: the command line, and the end of the process with its status."""
    run_command(lambda: main(experiment))

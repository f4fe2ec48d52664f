"""The cascade: open a workdir, run the stages of the table that it lacks, evaluate after each policy, report."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cso_jax import config_values as configs
from cso_jax import envs, learner, policies, report, telemetry
from cso_jax.data.language import embeddings
from cso_jax.evaluation import run_evaluation, warn_of_the_codebook
from cso_jax.processes import Meeting
from cso_jax.report import videos
from cso_jax.run import MAX_SEED, Run
from cso_jax.stages import provenance, table

_TASK_EMBEDDING = "task_embedding.npz"


def run_cascade(
    config: ConfigDict, workdir: Path, stop: threading.Event | None = None, meeting: Meeting | None = None
) -> Path | None:
    """Run every stage of `config` that `workdir` does not hold yet; returns the report's path.

    Of several processes that meet, each calls this with a folder of its own; None where another one reports.
    """
    run = _opened_together(config, workdir, stop, meeting)
    run.clock.watch_compilation(log_above=5.0)
    timing = workdir / "timing.json"

    def step(name: str, function: Callable[..., Any], *arguments: Any) -> None:
        try:
            function(run, *arguments)
        finally:
            run.clock.save(timing, name)
            run.save_counters(name)

    latest = ""
    try:
        for stage in table.enabled(config):
            provenance.begin(config, workdir, stage.name)
            step(stage.name, stage.function)
            if meeting is not None:
                meeting.take_over(stage.name)
            provenance.finish(config, workdir, stage.name)
            for evaluation in table.evaluations(config, after=stage.name) if run.leads else ():
                step(f"evaluate {evaluation.name}", run_evaluation, evaluation.name)
                latest = evaluation.name if evaluation.step else latest
        if not run.leads:
            return None
        warn_of_the_codebook(run)
        step("report", videos.run_stage, latest)
        page = report.build(workdir)
        telemetry.show(report.text_tables(workdir))
        telemetry.log(f"report: {page}")
        growing = (f"--config.{key} (now {configs.flatten(config)[key]})" for key in provenance.GROWING)
        telemetry.log(f"the same command with a larger {' or '.join(growing)} goes on from here")
        return page
    finally:
        run.close()


def _opened_together(config: ConfigDict, workdir: Path, stop: threading.Event | None, meeting: Meeting | None) -> Run:
    if meeting is None:
        return open_run(config, workdir, stop)
    if config.spo.enabled and config.spo.critic:
        raise configs.ConfigError("config.spo.critic needs a run in one process: leave out --processes")
    if not meeting.processes.leads:
        meeting.open()  # its folder is filled from the leader's first
    run = open_run(config, workdir, stop)
    if meeting.processes.leads:
        meeting.open()
    run.meeting = meeting
    return run


def open_run(config: ConfigDict, workdir: Path, stop: threading.Event | None = None) -> Run:
    """Prepare a workdir: refuse one of another config, write its config, build policy and logs.

    Raises ConfigError with the differences where the workdir was made with a config that gives other results.
    """
    if config.seed >= MAX_SEED:
        raise configs.ConfigError(f"config.seed must be below {MAX_SEED}; got {config.seed}")
    settings = config.env.to_dict()
    try:
        tasks = envs.task_names(settings)
        file_versions = envs.require_files(settings)
        sentences = [envs.sentence(settings, task) for task in tasks]
    except (ValueError, ImportError, FileNotFoundError) as error:
        raise configs.ConfigError(str(error)) from None
    _check_shares(config, jax.device_count())
    changed = provenance.changed_keys(config, workdir)
    if any(table.reads(("encoder", "env"), key) for key in changed):
        (workdir / _TASK_EMBEDDING).unlink(missing_ok=True)
    embedding = _task_embedding(config, workdir, tasks, sentences)
    try:
        spec = envs.spec(settings)
        policy = policies.build(config, spec, len(tasks), 0 if embedding is None else embedding.shape[1])
        jax.eval_shape(lambda: policy.init(jax.random.key(0), spec, embedding))
    except (ValueError, TypeError, AssertionError) as error:
        raise configs.ConfigError(f"these values build no policy: {str(error).strip().splitlines()[0]}") from None
    if spec.images:
        provenance.require_same_files(workdir, file_versions)
    workdir.mkdir(parents=True, exist_ok=True)
    for leftover in workdir.rglob(".*.tmp"):  # of writes that a killed run did not finish
        leftover.unlink()
    provenance.accept(config, workdir, changed, file_versions)
    if embedding is not None and not (workdir / _TASK_EMBEDDING).exists():
        embeddings.save(workdir / _TASK_EMBEDDING, tasks, embedding)
    return Run(
        config=config,
        workdir=workdir,
        settings=settings,
        tasks=tasks,
        spec=spec,
        policy=policy,
        task_embedding=embedding,
        mesh=learner.make_mesh(),
        metrics=telemetry.MetricsLog(workdir),
        clock=telemetry.PhaseClock(),
        stop=stop or threading.Event(),
        state_ranges=table.state_ranges(),
        file_versions=file_versions,
    )


def under_protocol(run: Run, name: str) -> Run:
    """A run whose episodes follow another of the benchmark's protocols, its tasks worded as there.

    Raises ConfigError for a protocol that there is not, and where its files are not.
    """
    try:
        settings = envs.under_protocol(run.settings, name)
        versions = envs.require_files(settings)
        sentences = [envs.sentence(settings, task) for task in run.tasks]
        embedding, kind = run.task_embedding, run.config.encoder.task_embedding
        if kind in embeddings.MODELS and sentences != [envs.sentence(run.settings, task) for task in run.tasks]:
            embedding = embeddings.task_embeddings(
                kind, run.tasks, sentences, file=run.config.encoder.task_embedding_file
            )
    except (ValueError, ImportError, FileNotFoundError, embeddings.LanguageError) as error:
        raise configs.ConfigError(str(error)) from None
    return dataclasses.replace(run, settings=settings, file_versions=versions, task_embedding=embedding)


def _task_embedding(
    config: ConfigDict, workdir: Path, tasks: Sequence[str], sentences: Sequence[str]
) -> np.ndarray | None:
    """Vectors `[N, E]` of the tasks' sentences, None for plain task ids. The workdir keeps those that it began with."""
    if config.encoder.task_embedding == "id":
        return None
    kept = workdir / _TASK_EMBEDDING
    try:
        if kept.exists():
            return embeddings.load(kept, tasks)
        return embeddings.task_embeddings(
            config.encoder.task_embedding, tasks, sentences, file=config.encoder.task_embedding_file
        )
    except embeddings.LanguageError as error:
        raise configs.ConfigError(str(error)) from None


def _check_shares(config: ConfigDict, devices: int) -> None:
    """Raises ConfigError for batches that the devices of this machine cannot share evenly."""
    sections = [stage.name for stage in table.of_policy(config) if "batch_size" in config[stage.name]]
    sizes = {f"{name}.batch_size": config[name].batch_size for name in sections}
    sizes["spo.minibatch_skills"] = config.spo.minibatch_skills
    uneven = [f"config.{key} = {size}" for key, size in sizes.items() if size % devices]
    if uneven:
        raise configs.ConfigError(
            f"{devices} devices share each batch, so its size must be a multiple of {devices}: {', '.join(uneven)}"
        )

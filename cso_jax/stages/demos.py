"""Stage demos: one HDF5 file of demonstrations per task, made by scripted experts or found among official files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cso_jax import envs, experts, policies, rules, telemetry
from cso_jax.data import store
from cso_jax.data.dataset import ChunkWindows
from cso_jax.data.libero import official
from cso_jax.experts.protocol import CollectDemo, Demonstration
from cso_jax.files import expanded
from cso_jax.rollout.episodes import Interrupted
from cso_jax.rollout.jobs import Job, JobError, JobProcesses, ProcessDied
from cso_jax.rollout.runner import usable_cpus
from cso_jax.run import Run, RunError, Stopped

STAGE = "demos"


def problems(config: ConfigDict) -> list[str]:
    """What does not go together in `config.data` and `config.demos`."""
    official_files = config.data == "official"
    expert = config.env.name in experts.EXPERTS or config.env.name not in envs.BENCHMARKS
    checks = (
        (config.data != "stored" or config.demos.folder != "",
         "config.data=stored reads the HDF5 files of another run: --config.demos.folder=WORKDIR/demos names them"),
        (config.data != "scripted" or expert,
         f"config.data=scripted needs scripted experts; there are some for {', '.join(experts.EXPERTS)}, not for "
         f"{config.env.name}"),
        (not official_files or config.env.name == "libero", "config.data=official is for LIBERO's files only"),
        (not official_files or config.demos.folder != "",
         "config.data=official reads HDF5 files: --config.demos.folder=FOLDER says where they are"),
        (not official_files or config.demos.label == "executed",
         "config.demos.label=expert needs scripted demonstrations: official files hold executed actions"),
    )  # fmt: skip
    return [
        *rules.one_of("data", config.data, ("scripted", "official", "stored")),
        *rules.one_of("demos.label", config.demos.label, ("executed", "expert")),
        *rules.one_of("demos.actions", config.demos.actions, official.ACTION_RULES),
        *(message for fits, message in checks if not fits),
    ]


def path(run: Run, task: str) -> Path:
    """The task's file. Raises StoreError where an official one is not there."""
    if run.config.data == "scripted":
        return run.workdir / "demos" / f"{task}.hdf5"
    return file_of(run.config, task)


def file_of(config: ConfigDict, task: str) -> Path:
    """The file of a task that was there before the run. Raises StoreError where an official one is not there."""
    if config.data == "official":
        return official.find(config.demos.folder, task)
    return expanded(config.demos.folder) / f"{task}.hdf5"


def run_stage(run: Run) -> None:
    """See to it that every task has `config.demos.per_task` demonstrations, if anything is still to learn from them."""
    learners: list[str] = [name for name in ("codebook", "imitation") if name in policies.stages_of(run.config)]
    if run.config.reference.enabled and "reference" in policies.stages_of(run.config):
        learners.append("reference")
    learnt = all(run.finished(name) for name in learners)
    if learnt and not run.config.rsft.demo_fraction:
        return
    make = {"official": _check_official, "stored": _check_stored}.get(run.config.data, _make)
    run.shared(STAGE, lambda: make(run))


def _check_official(run: Run) -> None:
    """Raises StoreError or RunError, naming the first file that is missing or does not fit."""
    notes: dict[str, list[str]] = {}
    for task in telemetry.progress(run.tasks, "demonstrations", unit="file"):
        episodes = official.read(path(run, task), task, run.spec, images=False)
        _check_enough(run, task, len(episodes))
        for note in official.action_notes([episode.arrays["actions"] for episode in episodes]):
            notes.setdefault(note.partition(":")[2] or note, []).append(f"{path(run, task).name}: {note}")
    rule = run.config.demos.actions
    for found in notes.values():
        more = f" (and {len(found) - 1} more files)" if len(found) > 1 else ""
        if rule == "refuse":
            raise RunError(f"config.demos.actions=refuse: {found[0]}{more}")
        if rule == "clip" or "gripper" not in found[0]:
            telemetry.warn(found[0] + more)


def _check_stored(run: Run) -> None:
    """Raises StoreError or RunError, naming the first file that is missing or does not fit."""
    label = "actions" if run.config.demos.label == "executed" else "expert_actions"
    for task in run.tasks:
        file = path(run, task)
        if not file.is_file():
            raise RunError(f"{file} is not there: config.demos.folder holds one TASK.hdf5 per task")
        episodes, _ = store.read(file, images=False)
        _check_enough(run, task, len(episodes))
        for episode in episodes:
            lacking = [name for name in run.spec.lowdim if name not in episode.observations]
            if lacking:
                raise RunError(f"{file}: an episode has no observation {lacking[0]!r}, which the robot shows")
            if label not in episode.arrays:
                raise RunError(f"{file} holds no {label}: set config.demos.label to executed")
            size = episode.arrays[label].shape[1]
            if size != run.spec.action_dim:
                raise RunError(f"{file}: actions have {size} numbers, the robot takes {run.spec.action_dim}")


def _check_enough(run: Run, task: str, found: int) -> None:
    wanted = run.config.demos.per_task
    if found < wanted:
        raise RunError(f"{path(run, task)} holds {found} demonstrations, config.demos.per_task asks for {wanted}")


def _make(run: Run) -> None:
    """Collect the demonstrations of every task that has no complete file yet.

    Attempt n of a task starts from the task's n-th train state with noise of its own, and the first successes in that
    order are kept: the files do not depend on how many processes made them. Raises RunError for a task whose expert
    succeeds too rarely.
    """
    missing = [task for task in run.tasks if not _complete(run, task)]
    if not missing:
        return
    wanted = run.config.demos.per_task
    with telemetry.progress(len(run.tasks) * wanted, "demonstrations", unit="episode",
                            initial=(len(run.tasks) - len(missing)) * wanted) as bar, \
            run.clock.phase("physics"), \
            JobProcesses(run.config.demos.processes or usable_cpus(), stop=run.stop.is_set) as processes:  # fmt: skip
        for task, demos, attempts in _collect(run, processes, missing):
            store.write(path(run, task), [_stored(demo) for demo in demos], _attributes(run, task, attempts))
            run.metrics.write(STAGE, run.tasks.index(task), task=task, attempts=attempts, successes=len(demos),
                              mean_steps=float(np.mean([demo.success_step + 1 for demo in demos])))  # fmt: skip
            bar.update(len(demos))
            if run.stop.is_set():
                raise Stopped(STAGE)


def _complete(run: Run, task: str) -> bool:
    file = path(run, task)
    if not file.exists():
        return False
    try:
        episodes, _ = store.read(file, images=False)
    except store.StoreBusy:
        raise
    except store.StoreError as error:
        store.quarantine(file, str(error))
        return False
    _check_enough(run, task, len(episodes))
    return True


def _collect(run: Run, processes: JobProcesses, tasks: list[str]) -> Iterator[tuple[str, list[Demonstration], int]]:
    """(task, its demonstrations, attempts used), in task order; the next task's attempts run ahead meanwhile."""
    settings = run.config.demos
    limit = settings.per_task * settings.max_attempts_per_demo
    collect = experts.collector(run.settings)
    # One job is a few attempts of one task, so that a process keeps its simulator.
    stride = max(1, settings.per_task // 4)

    def submit(task: str, first: int) -> Job:
        inits = [run.train_init(STAGE, task, first + offset) for offset in range(min(stride, limit - first))]
        return processes.submit(
            _attempts, collect, run.settings, inits, settings.noise, settings.extra_steps, run.seed(STAGE, task)
        )

    def first_jobs(task: str) -> list[Job]:
        return [submit(task, first) for first in range(0, settings.per_task, stride)]

    # Only one task ahead: a retry waits behind what is queued, and finished attempts are held in memory.
    ahead = {task: first_jobs(task) for task in tasks[:1]}
    for number, task in enumerate(tasks):
        ahead |= {later: first_jobs(later) for later in tasks[number + 1 : number + 2]}
        demos: list[Demonstration] = []
        attempts = 0
        jobs = ahead.pop(task)
        submitted = sum(min(stride, limit - first) for first in range(0, settings.per_task, stride))
        while len(demos) < settings.per_task:
            if not jobs:
                if submitted >= limit:
                    raise RunError(
                        f"the scripted expert of {task} succeeded in {len(demos)} of {attempts} attempts, "
                        f"{settings.per_task} demonstrations were asked for; lower config.demos.noise "
                        f"({settings.noise}), raise config.env.horizon ({run.config.env.horizon}) or ask for fewer"
                    )
                jobs.append(submit(task, submitted))
                submitted += min(stride, limit - submitted)
            outcomes = _outcomes(processes, jobs.pop(0), task)
            for demo in outcomes:
                if len(demos) < settings.per_task:
                    attempts += 1
                    if demo is not None:
                        demos.append(demo)
        for job in jobs:
            processes.cancel(job)
        yield task, demos, attempts


def _outcomes(processes: JobProcesses, job: Job, task: str) -> list[Demonstration | None]:
    """What a job of attempts gave. Raises RunError, one line, where it gave nothing; Stopped when asked to stop."""
    try:
        return processes.result(job)
    except Interrupted:
        raise Stopped(STAGE) from None
    except ProcessDied as error:
        hint = "too little memory, mostly: lower config.demos.processes" if error.memory else "a crash of the simulator"
        raise RunError(
            f"a process that made demonstrations of {task} {error} ({hint}). The tasks before it are kept: run the "
            "same command again"
        ) from None
    except JobError as error:
        failed = RunError(
            f"the scripted expert of {task} failed with {str(error)[:140]}. The tasks before it are kept: mend the "
            "cause and run the same command again"
        )
        for note in getattr(error, "__notes__", []):
            failed.add_note(note)
        raise failed from None


def _attempts(
    collect: CollectDemo, settings: dict[str, Any], inits: list, noise: float, extra_steps: int, seed: int
) -> list:
    """In a worker process: one demonstration, or None, per initial state."""
    outcomes = []
    for init in inits:
        try:
            outcomes.append(collect(settings, init, noise=noise, extra_steps=extra_steps, seed=seed))
        except Exception as error:
            error.add_note(f"From the initial state {init.name}.")
            raise
    return outcomes


def _stored(demo: Demonstration) -> store.StoredEpisode:
    steps = np.arange(len(demo.actions))
    arrays = {
        "actions": demo.actions,
        "expert_actions": demo.expert_actions,
        "rewards": (steps >= demo.success_step).astype(np.float32),
        "dones": (steps == len(steps) - 1).astype(np.uint8),
    }
    return store.StoredEpisode(demo.init.name, demo.observations, arrays | demo.extras, demo.attributes)


def _attributes(run: Run, task: str, attempts: int) -> dict[str, Any]:
    return {
        # robomimic asks for the type of the environment: 1 is its number for robosuite's.
        "env_args": {"env_name": run.settings["name"], "type": 1, "task": task, "env_kwargs": run.settings},
        "bddl_file_name": f"{task}.bddl",
        "problem_info": {"language_instruction": envs.sentence(run.settings, task)},
        "attempts": attempts,
        "noise": run.config.demos.noise,
    }


def load(run: Run, *, images: bool) -> list[list[store.StoredEpisode]]:
    """The demonstrations of every task, in task order. Raises StoreError where a file is missing or damaged."""
    return [_read(run, task, images)[: run.config.demos.per_task] for task in run.tasks]


def _read(run: Run, task: str, images: bool) -> list[store.StoredEpisode]:
    rule = run.config.demos.actions
    if run.config.data == "official":
        episodes = official.read(path(run, task), task, run.spec, images=images)
        for episode in episodes:
            episode.arrays = {**episode.arrays, "actions": official.conform(episode.arrays["actions"], rule)}
        return episodes
    return store.read(path(run, task), images=images)[0]


def actions_of(run: Run, episode: store.StoredEpisode) -> np.ndarray:
    """The actions to imitate, `[N, A]`: what was executed, or what the expert meant (config.demos.label)."""
    return episode.arrays["actions" if run.config.demos.label == "executed" else "expert_actions"]


def windows(run: Run, episodes: Sequence[store.StoredEpisode], chunk_length: int) -> ChunkWindows:
    """Every chunk of the episodes, as the policies of the run learn it (`EnvSpec.frame`)."""
    frame = run.spec.frame
    return ChunkWindows(
        [actions_of(run, episode) for episode in episodes],
        chunk_length,
        frame=frame,
        seen=[] if frame is None else [episode.observations[frame.key] for episode in episodes],
    )

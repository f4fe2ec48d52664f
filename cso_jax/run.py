"""A run: its directory, its lock, its random numbers, and what every stage shares."""

import contextlib
import dataclasses
import fcntl
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cso_jax import config as configs
from cso_jax import envs, learner, telemetry
from cso_jax.checkpoints import Checkpoints, fit_structure
from cso_jax.data.language import embeddings
from cso_jax.envs.protocol import EnvSpec, EvalInit, TrainInit
from cso_jax.policies.quest import policy
from cso_jax.rollout.pool import WorkerPool
from cso_jax.stages import provenance, table

# Train indices are cut into ranges so that no two stages of a run, nor two seeds, learn from the same initial state.
_RANGES = {"demos": 0, "rsft": 1_000_000, "spo": 2_000_000}
_SEED_STRIDE = 10_000_000
MAX_SEED = 100
_TASK_EMBEDDING = "task_embedding.npz"


class RunError(RuntimeError):
    """The run cannot go on; the message says why and what to do."""


class Stopped(Exception):
    """The run was asked to stop (SIGTERM, SIGINT) and has saved its state."""


@dataclasses.dataclass
class Run:
    """What the stages share. `close` ends worker processes and flushes logs."""

    config: ConfigDict
    workdir: Path
    settings: dict[str, Any]
    tasks: tuple[str, ...]
    spec: EnvSpec
    networks: policy.Networks
    task_embedding: np.ndarray | None
    mesh: Mesh
    metrics: telemetry.MetricsLog
    clock: telemetry.PhaseClock
    stop: threading.Event
    _pool: WorkerPool | None = None

    @property
    def pool(self) -> WorkerPool:
        """The rollout workers, started at first use."""
        if self._pool is None:
            rollout = self.config.rollout
            self._pool = WorkerPool(
                envs.factory(self.settings),
                self.settings,
                workers=rollout.workers or usable_cpus(),
                slots=rollout.slots,
                step_timeout_s=rollout.step_timeout_s,
                start_timeout_s=rollout.start_timeout_s,
                max_attempts=rollout.max_attempts,
                recycle_after_episodes=rollout.recycle_after_episodes,
                log=telemetry.log,
            )
        return self._pool

    def key(self, *path: str | int) -> jax.Array:
        """The PRNG key of a place in the run; the same place always has the same key."""
        key = jax.random.key(self.config.seed)
        for part in path:
            key = jax.random.fold_in(key, _number(part))
        return key

    def seed(self, *path: str | int) -> int:
        """As `key`, for NumPy."""
        return int(np.random.SeedSequence([self.config.seed, *map(_number, path)]).generate_state(1)[0])

    def episode_key(self, *path: str | int) -> np.ndarray:
        """The raw PRNG key, uint32 `[2]`, of an episode."""
        return np.random.SeedSequence([self.config.seed, *map(_number, path)]).generate_state(2)

    def train_init(self, stage: str, task: str, number: int) -> TrainInit:
        """The `number`-th initial state of a task that a stage may learn from."""
        return TrainInit(task, self.config.seed * _SEED_STRIDE + _RANGES[stage] + number)

    def eval_init(self, task: str, number: int) -> EvalInit:
        """The `number`-th held-out initial state of a task.

        Seeds have states of their own, so that they pool, where the benchmark has more than it repeats
        (`envs.evaluation_states`).
        """
        return EvalInit(task, self.config.seed * _SEED_STRIDE + number)

    def checkpoints(self, stage: str) -> Checkpoints:
        return Checkpoints(self.workdir / "checkpoints" / stage)

    def finished(self, stage: str) -> bool:
        """Whether the newest readable checkpoint of a stage is its last one."""
        found = self.checkpoints(stage).restore_latest(None)
        return found is not None and bool(found[2].get("final"))

    def variables(self, stage: str) -> policy.Variables:
        """The policy that a finished stage left, numpy arrays.

        Raises RunError where there is none, CheckpointError where it is not of this config's architecture.
        """
        found = self.checkpoints(stage).restore_latest(None)
        if found is None:
            raise RunError(f"{self.workdir} holds no readable checkpoint of the stage {stage!r}")
        step, tree, meta = found
        if not meta.get("final"):
            raise RunError(
                f"the stage {stage!r} of {self.workdir} is not finished (newest checkpoint: step {step}); "
                "run the same cso_jax.main command again first"
            )
        expected = jax.eval_shape(lambda: self.fresh_variables(jax.random.key(0)))
        where = self.workdir / "checkpoints" / stage / str(step)
        return fit_structure({**tree["fixed"], **tree["trainable"]}, expected, where)

    def fresh_variables(self, key: jax.Array) -> policy.Variables:
        """An untrained policy."""
        return policy.init(self.networks, key, self.spec, self.task_embedding)

    def restart_pool(self) -> None:
        """End the rollout workers; the next use starts new ones, with the environment variables of that moment."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def close(self) -> None:
        self.restart_pool()
        self.metrics.close()


def _number(part: str | int) -> int:
    return part if isinstance(part, int) else zlib.crc32(part.encode())


def open_run(config: ConfigDict, workdir: Path, stop: threading.Event | None = None) -> Run:
    """Prepare a workdir: refuse one of another config, write its config, build networks and logs.

    Raises ConfigError with the differences where the workdir was made with a config that gives other results.
    """
    if config.seed >= MAX_SEED:
        raise configs.ConfigError(f"config.seed must be below {MAX_SEED}; got {config.seed}")
    settings = config.env.to_dict()
    try:
        tasks = envs.task_names(settings)
        envs.require_files(settings)
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
        networks = policy.build(config, spec, len(tasks), 0 if embedding is None else embedding.shape[1])
        jax.eval_shape(lambda: policy.init(networks, jax.random.key(0), spec, embedding))
    except (ValueError, TypeError, AssertionError) as error:
        raise configs.ConfigError(f"these values build no policy: {str(error).strip().splitlines()[0]}") from None
    workdir.mkdir(parents=True, exist_ok=True)
    for leftover in workdir.rglob(".*.tmp"):  # of writes that a killed run did not finish
        leftover.unlink()
    provenance.accept(config, workdir, changed)
    if embedding is not None and not (workdir / _TASK_EMBEDDING).exists():
        embeddings.save(workdir / _TASK_EMBEDDING, tasks, embedding)
    return Run(
        config=config,
        workdir=workdir,
        settings=settings,
        tasks=tasks,
        spec=spec,
        networks=networks,
        task_embedding=embedding,
        mesh=learner.make_mesh(),
        metrics=telemetry.MetricsLog(workdir),
        clock=telemetry.PhaseClock(),
        stop=stop or threading.Event(),
    )


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


def usable_cpus() -> int:
    """The CPU cores that this process may use: fewer than the machine has in a container or a batch job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_shares(config: ConfigDict, devices: int) -> None:
    """Raises ConfigError for batches that the devices of this machine cannot share evenly."""
    sizes = {f"{name}.batch_size": config[name].batch_size for name in ("codebook", "imitation", "rsft")}
    sizes["spo.minibatch_skills"] = config.spo.minibatch_skills
    uneven = [f"config.{key} = {size}" for key, size in sizes.items() if size % devices]
    if uneven:
        raise configs.ConfigError(
            f"{devices} devices share each batch, so its size must be a multiple of {devices}: {', '.join(uneven)}"
        )


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
            raise RunError(
                f"{workdir} is in use by {holder}; wait for it, stop it, or choose another --workdir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield

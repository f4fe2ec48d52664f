"""A run: its directory, its random numbers, its agents and episodes: what every stage shares."""

import dataclasses
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cso_jax import telemetry
from cso_jax.checkpoints import Checkpoints, fit_structure
from cso_jax.envs.protocol import EnvSpec, EvalInit, TrainInit
from cso_jax.policies.agent import Agent
from cso_jax.policies.interface import Policy, Sampling, SkillPolicy, Variables
from cso_jax.processes import Made, Meeting
from cso_jax.rollout.episodes import ActFn, EpisodeRecord, EpisodeRequest, Interrupted, PoolStats
from cso_jax.rollout.runner import EpisodeRunner, make_runner

SEED_STRIDE = 10_000_000
MAX_SEED = 100
COUNTERS = "counters.json"


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
    policy: Policy
    task_embedding: np.ndarray | None
    mesh: Mesh
    metrics: telemetry.MetricsLog
    clock: telemetry.PhaseClock
    stop: threading.Event
    state_ranges: Mapping[str, int]
    file_versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    meeting: Meeting | None = None
    _runner: EpisodeRunner | None = None
    _counted: dict[str, float] = dataclasses.field(default_factory=dict)
    _retired: PoolStats = dataclasses.field(default_factory=PoolStats)  # of runners that were closed

    @property
    def skill_policy(self) -> SkillPolicy:
        """The policy, where a stage needs one that acts in skills: the table of stages sees to it."""
        return cast(SkillPolicy, self.policy)

    @property
    def runner(self) -> EpisodeRunner:
        """What runs episodes, made at first use."""
        if self._runner is None:
            self._runner = make_runner(self.config, self.settings, history=self.policy.wants.history)
        return self._runner

    @property
    def leads(self) -> bool:
        """Whether this process runs episodes, evaluates and reports: of several, only one does."""
        return self.meeting is None or self.meeting.processes.leads

    def shared(self, name: str, make: Callable[[], Made]) -> Made:
        """`make()`, by the process that leads: the others wait for what it gave. Each name is used once in a run."""
        return make() if self.meeting is None else self.meeting.shared(name, make)

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
        """The `number`-th initial state of a task that a stage may learn from.

        Train indices are cut into ranges so that no two stages of a run, nor two seeds, learn from the same state.
        """
        return TrainInit(task, self.config.seed * SEED_STRIDE + self.state_ranges[stage] + number)

    def eval_init(self, task: str, number: int) -> EvalInit:
        """The `number`-th held-out initial state of a task.

        Seeds have states of their own, so that they pool, where the benchmark has more than it repeats
        (`envs.evaluation_states`).
        """
        return EvalInit(task, self.config.seed * SEED_STRIDE + number)

    def checkpoints(self, stage: str) -> Checkpoints:
        return Checkpoints(self.workdir / "checkpoints" / stage)

    def finished(self, stage: str) -> bool:
        """Whether the newest readable checkpoint of a stage is its last one."""
        found = self.checkpoints(stage).restore_latest(None)
        return found is not None and bool(found[2].get("final"))

    def variables(self, stage: str) -> Variables:
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

    def fresh_variables(self, key: jax.Array) -> Variables:
        """An untrained policy."""
        return self.policy.init(key, self.spec, self.task_embedding)

    def agent(self, variables: Variables, sampling: Sampling | None = None) -> Agent:
        """The policy with these variables as it acts in evaluation and SPO, or drawing otherwise."""
        chosen = self.config.sampling
        if self.task_embedding is not None:  # an evaluation may word the tasks differently than training did
            variables = {**variables, "task_embedding": self.task_embedding}
        return Agent(
            self.policy,
            variables,
            self.tasks,
            sampling or Sampling(chosen.temperature, chosen.top_k),
            self.config.execution_horizon,
            self.spec.frame,
        )

    def rollout(
        self,
        requests: Sequence[EpisodeRequest],
        act: ActFn,
        *,
        keep_observations: bool = False,
        on_episode: Callable[[int, EpisodeRecord], None] | None = None,
    ) -> list[EpisodeRecord]:
        """Run a wave of episodes, book its time by phase. Raises Stopped when the run is asked to stop meanwhile.

        `on_episode(index, record)` is called as episodes end, in an order that depends on timing.
        """
        before = self.runner.stats.as_dict()
        with self.clock.phase("wait"):
            try:
                return self.runner.run(
                    requests,
                    act,
                    keep_observations=keep_observations,
                    on_episode=on_episode,
                    stop=self.stop.is_set,
                )
            except Interrupted:
                raise Stopped("rollouts") from None
            finally:
                after = self.runner.stats.as_dict()
                busy = {name: after[name] - before[name] for name in ("physics_s", "render_s", "wait_s")}
                simulated = busy["physics_s"] + busy["render_s"]
                if simulated > 0:
                    # The wall-clock time spent waiting for simulators, split as the simulators spent it.
                    self.clock.add("physics", busy["wait_s"] * busy["physics_s"] / simulated)
                    self.clock.add("rendering", busy["wait_s"] * busy["render_s"] / simulated)

    def save_counters(self, stage: str) -> None:
        """Add what episodes and compilations came to since the last time to `stage` in `counters.json`."""
        stats = self._retired if self._runner is None else self._retired.plus(self._runner.stats)
        now = {"programs": float(self.clock.programs), "recalled": float(self.clock.recalled), **stats.as_dict()}
        largest = now.pop("worker_rss")
        grown = {name: value - self._counted.get(name, 0.0) for name, value in now.items()}
        path = self.workdir / COUNTERS
        if grown["episodes"]:
            known = telemetry.load_account(path).get(stage, {}).get("worker_rss", 0.0)
            grown["worker_rss"] = max(0.0, largest - known)
        if any(grown.values()):
            telemetry.add_to(path, stage, grown)
        self._counted = now

    def restart_runner(self) -> None:
        """End the rollout workers; the next use starts new ones, with the environment variables of that moment."""
        if self._runner is not None:
            self._retired = self._retired.plus(self._runner.stats)
            self._runner.close()
            self._runner = None

    def close(self) -> None:
        self.restart_runner()
        self.metrics.close()


def _number(part: str | int) -> int:
    return part if isinstance(part, int) else zlib.crc32(part.encode())

"""Whatever runs episodes, behind one protocol: a pool of local processes, or actors of Ray on many machines."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ml_collections import ConfigDict

from cso_jax import envs, rules, telemetry
from cso_jax.rollout import ray_engine
from cso_jax.rollout.episodes import ActFn, EpisodeRecord, EpisodeRequest, PoolStats
from cso_jax.rollout.pool import WorkerPool

ENGINES = ("local", "ray")


class EpisodeRunner(Protocol):
    """Runs episodes under a policy. An episode's record depends on its request alone, whoever runs it and when."""

    @property
    def stats(self) -> PoolStats:
        """Sums since the runner was made."""

    def run(
        self,
        requests: Sequence[EpisodeRequest],
        act: ActFn,
        *,
        keep_observations: bool,
        on_episode: Callable[[int, EpisodeRecord], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> list[EpisodeRecord]:
        """Run every request to its end and return the records in request order.

        `on_episode(request index, record)` is called as episodes end, in an order that depends on timing; `stop` is
        asked between decisions. Raises RolloutError where an episode failed for good, Interrupted where `stop` was
        true; the runner stays usable.
        """

    def close(self) -> None:
        """Release what it holds. Safe to call twice."""


def problems(config: ConfigDict) -> list[str]:
    """What is wrong with the section `config.rollout`, one line each."""
    rollout = config.rollout
    found = rules.one_of("rollout.engine", rollout.engine, ENGINES)
    if rollout.engine == "ray":
        found += rules.at_least_one("rollout.ray.cpus", rollout.ray.cpus)
        if not ray_engine.available():
            found.append("config.rollout.engine=ray needs Ray: pip install -e '.[cluster]'")
    return found


def make_runner(config: ConfigDict, settings: dict[str, Any], *, history: int = 1) -> EpisodeRunner:
    """The runner of a config: worker processes on this machine, or actors on a Ray cluster.

    `settings` is `config.env` as a plain dictionary; `history` the observations of how many steps the policy sees.
    """
    rollout = config.rollout
    environments = envs.factory(settings), settings | ({"history": history} if history > 1 else {})
    options = {
        "step_timeout_s": rollout.step_timeout_s,
        "start_timeout_s": rollout.start_timeout_s,
        "max_attempts": rollout.max_attempts,
        "recycle_after_episodes": rollout.recycle_after_episodes,
    }
    if rollout.engine == "ray":
        return ray_engine.RayRunner(
            *environments,
            address=rollout.ray.address,
            actors=rollout.ray.actors,
            cpus=rollout.ray.cpus,
            gpus=rollout.ray.gpus,
            slots=rollout.slots,
            pool_options=options,
            start_timeout_s=rollout.start_timeout_s,
            max_attempts=rollout.max_attempts,
            log=telemetry.log,
        )
    workers = rollout.workers or usable_cpus()
    return WorkerPool(*environments, workers=workers, slots=rollout.slots, log=telemetry.log, **options)


def usable_cpus() -> int:
    """The CPU cores that this process may use: fewer than the machine has in a container or a batch job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

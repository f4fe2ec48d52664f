"""Episodes on many machines: actors of Ray, each with a pool of its own and a copy of the agent.

The parameters travel once per call of `run`, through Ray's object store; requests go to the actors in small units, to
whoever is free, and records come back. Nothing waits for all actors at once, and no collective is held open. A unit
whose actor or machine died is run again by another one, so records are those of the local pool: bit for bit where the
machines are alike (XLA's results may differ between kinds of CPU, and with their number of cores).
"""

import collections
import dataclasses
import importlib.util
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from cso_jax.rollout.actor import AgentAct
from cso_jax.rollout.episodes import ActFn, EpisodeRecord, EpisodeRequest, Interrupted, PoolStats, RolloutError
from cso_jax.rollout.pool import START_ATTEMPTS, STOP_POLL_S, WorkerPool
from cso_jax.rollout.worker import MakeEnvironments

_CONNECT_S = 10.0
_WAVES_PER_UNIT = 2  # requests of a unit for each slot of an actor: fewer idle at its end, more travel more often


_Unit = tuple[int, ...]
"""Requests that an actor runs in one go, by their places in the call."""


@dataclasses.dataclass(eq=False)
class _Host:
    """An actor as the runner sees it.

    `starting` answers once it runs, None from then on; `parameters` is the call whose agent it has.
    """

    handle: Any
    starting: Any
    parameters: int = 0


class RayRunner:
    """`actors` actors with a worker per CPU and `slots` environments per worker. Satisfies `EpisodeRunner`.

    `address`: of a running cluster, "auto" for the one that this machine belongs to, "" for one of this process's own.
    Each actor has `cpus` CPUs and `gpus` GPUs, of which a part will do; `actors` 0: as many as there are CPUs for. Ray
    starts with the first call of `run`, which raises RolloutError where there is no cluster, or no room in it.
    """

    def __init__(
        self,
        make_environments: MakeEnvironments,
        settings: dict[str, Any],
        *,
        address: str,
        actors: int,
        cpus: int,
        gpus: float,
        slots: int,
        pool_options: dict[str, Any],
        start_timeout_s: float,
        max_attempts: int,
        log: Callable[[str], None],
    ) -> None:
        self.stats = PoolStats()
        self.restarts = 0
        self._made_of = (make_environments, settings, cpus, slots, pool_options)
        self._address, self._wanted, self._cpus, self._gpus, self._slots = address, actors, cpus, gpus, slots
        self._start_timeout_s, self._max_attempts, self._log = start_timeout_s, max_attempts, log
        self._hosts: list[_Host] = []
        self._calls = 0
        self._failed_starts = 0
        self._closed = False
        self._started_ray = False

    def run(
        self,
        requests: Sequence[EpisodeRequest],
        act: ActFn,
        *,
        keep_observations: bool,
        on_episode: Callable[[int, EpisodeRecord], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> list[EpisodeRecord]:
        """As `WorkerPool.run`, for the `act` of an agent (`make_act`) only."""
        if self._closed:
            raise RuntimeError("this runner is closed")
        if not isinstance(act, AgentAct):
            raise RolloutError(
                "config.rollout.engine=ray runs the policies of this library; for one behind a server set "
                "--config.rollout.engine=local"
            )
        ray = self._start()
        started = time.perf_counter()
        self._calls += 1
        agent = ray.put(_on_host(act))
        records: list[EpisodeRecord | None] = [None] * len(requests)
        waiting = collections.deque(self._units(len(requests)))
        attempts: collections.Counter[_Unit] = collections.Counter()
        running: dict[Any, tuple[_Unit, _Host]] = {}
        alive = time.monotonic()
        try:
            while waiting or running:
                if stop is not None and stop():
                    left = sum(record is None for record in records)
                    raise Interrupted(f"stopped with {left} of {len(requests)} episodes unfinished")
                busy = {id(host) for _, host in running.values()}
                idle = [host for host in tuple(self._hosts) if id(host) not in busy and self._is_ready(ray, host)]
                for host in idle[: len(waiting)]:
                    unit = waiting.popleft()
                    chosen = [requests[place] for place in unit]
                    given = agent if host.parameters != self._calls else None
                    host.parameters = self._calls
                    running[host.handle.run.remote(given, chosen, keep_observations)] = (unit, host)
                alive = time.monotonic() if running else alive
                if time.monotonic() - alive > self._start_timeout_s:
                    raise RolloutError(
                        f"no actor was ready after {self._start_timeout_s:g} s: the cluster may be busy with other "
                        "jobs; `ray status` tells, config.rollout.start_timeout_s waits longer"
                    )
                starting = [host.starting for host in self._hosts if host.starting is not None] if waiting else []
                before = time.perf_counter()
                done, _ = ray.wait([*running, *starting], timeout=STOP_POLL_S)
                self.stats.wait_s += time.perf_counter() - before
                for answer in done:
                    if answer not in running:
                        continue
                    unit, host = running.pop(answer)
                    found = self._take(ray, answer, unit, host, attempts)
                    if found is None:
                        waiting.appendleft(unit)
                        continue
                    for place, record in zip(unit, found, strict=True):
                        # The request that was asked for, not its copy from another process.
                        records[place] = record = dataclasses.replace(record, request=requests[place])
                        if on_episode is not None:
                            on_episode(place, record)
        except BaseException:
            self._kill(ray)  # what still runs there would keep the next call waiting
            raise
        finally:
            self.stats.run_s += time.perf_counter() - started
        return [record for record in records if record is not None]

    def close(self) -> None:
        """End the actors, and Ray where it was started here. Safe to call twice."""
        self._closed = True
        if self._hosts or self._started_ray:
            ray = _ray()
            self._kill(ray)
            if self._started_ray:
                ray.shutdown()
                self._started_ray = False

    def _take(self, ray: Any, answer: Any, unit: _Unit, host: _Host, attempts: collections.Counter[_Unit]) -> Any:
        """The records of a unit, None where it must be run again. Raises RolloutError where that is pointless."""
        try:
            records, stats, lines = ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RolloutError):
                raise error.cause from None
            raise RolloutError(f"an actor failed: {_line(error.cause or error)}") from error
        except ray.exceptions.RayError as error:  # the actor, its machine, or what it had made is gone
            attempts[unit] += 1
            self._log(f"a rollout actor is gone, {len(unit)} episodes run again; {_line(error)}")
            if attempts[unit] >= self._max_attempts:
                raise RolloutError(
                    f"{len(unit)} episodes were lost {attempts[unit]} times with their actor: {_line(error)}; "
                    "see the logs of Ray, or lower config.rollout.slots"
                ) from None
            self._replace(ray, host)
            return None
        self.stats = self.stats.plus(stats)
        for line in lines:
            self._log(line)
        return records

    def _units(self, count: int) -> list[_Unit]:
        """All places in order, in units that every actor gets some of."""
        size = min(_WAVES_PER_UNIT * self._slots * self._cpus, -(-count // len(self._hosts)))
        return [tuple(range(first, min(first + size, count))) for first in range(0, count, max(size, 1))]

    def _start(self) -> Any:
        ray = _ray()
        if not ray.is_initialized():
            own = {} if self._address else {"include_dashboard": False}
            try:
                _require_listening(self._address)
                ray.init(self._address or "local", log_to_driver=False, configure_logging=False, **own)
            except (OSError, ValueError) as error:
                raise RolloutError(
                    f"no Ray cluster at {self._address!r} (config.rollout.ray.address): {_line(error)}; start one with "
                    "`ray start --head`, or set --config.rollout.ray.address= for one of this run's own"
                ) from None
            self._started_ray = True
        if not self._hosts:
            room = int(ray.cluster_resources().get("CPU", 0)) // self._cpus
            count = self._wanted or room
            if count < 1 or count > room:
                raise RolloutError(
                    f"the Ray cluster has room for {room} actors of config.rollout.ray.cpus = {self._cpus} CPUs, and "
                    f"config.rollout.ray.actors asks for {self._wanted or 'at least 1'}: lower one, or add machines"
                )
            self._hosts = [self._new_host(ray) for _ in range(count)]
        return ray

    def _new_host(self, ray: Any) -> _Host:
        remote = ray.remote(num_cpus=self._cpus, num_gpus=self._gpus)(ActorPool)
        handle = remote.remote(*self._made_of)
        return _Host(handle, handle.ready.remote())

    def _is_ready(self, ray: Any, host: _Host) -> bool:
        """Whether an actor has started. Raises RolloutError where actors keep failing to."""
        if host.starting is None:
            return True
        done, _ = ray.wait([host.starting], timeout=0)
        if not done:
            return False
        try:
            ray.get(host.starting)
        except ray.exceptions.RayError as error:
            self._failed_starts += 1
            if self._failed_starts >= START_ATTEMPTS:
                raise RolloutError(
                    f"rollout actors could not start ({self._failed_starts} attempts): {_line(error)}; is the same "
                    "version of this library installed on every machine?"
                ) from None
            self._log(f"a rollout actor did not start: {_line(error)}")
            self._replace(ray, host)
            return False
        host.starting = None
        self._failed_starts = 0
        return True

    def _replace(self, ray: Any, host: _Host) -> None:
        ray.kill(host.handle)
        self.restarts += 1
        self._hosts[self._hosts.index(host)] = self._new_host(ray)

    def _kill(self, ray: Any) -> None:
        for host in self._hosts:
            ray.kill(host.handle)
        self._hosts = []


class ActorPool:
    """What an actor is: a pool of local processes and the agent that it was last given."""

    def __init__(
        self,
        make_environments: MakeEnvironments,
        settings: dict[str, Any],
        workers: int,
        slots: int,
        pool_options: dict[str, Any],
    ) -> None:
        self._lines: list[str] = []
        self._pool = WorkerPool(
            make_environments, settings, workers=workers, slots=slots, log=self._lines.append, **pool_options
        )
        self._act: ActFn | None = None

    def ready(self) -> bool:
        return True

    def run(
        self, given: AgentAct | None, requests: Sequence[EpisodeRequest], keep_observations: bool
    ) -> tuple[list[EpisodeRecord], PoolStats, list[str]]:
        """Records of the requests, what the pool did for them, and what it said; `given` brings another agent."""
        if given is not None:
            self._act = given.on_device()
        assert self._act is not None
        self._pool.stats = PoolStats()
        self._lines.clear()
        records = self._pool.run(requests, self._act, keep_observations=keep_observations)
        # Actors wait side by side: how long it took is for the runner to say.
        return records, dataclasses.replace(self._pool.stats, wait_s=0.0, run_s=0.0), list(self._lines)


def available() -> bool:
    """Whether Ray is installed."""
    return importlib.util.find_spec("ray") is not None


def _ray() -> Any:
    import ray
    import ray.exceptions

    return ray


def _on_host(act: AgentAct) -> AgentAct:
    """The same with its variables as numpy arrays and without a clock, which is this process's own."""
    variables = jax.tree.map(np.asarray, jax.device_get(act.agent.variables))
    return dataclasses.replace(act, agent=dataclasses.replace(act.agent, variables=variables), clock=None)


def _require_listening(address: str) -> None:
    """Raises OSError where nobody listens at HOST:PORT: Ray itself would wait there for many minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()


def _line(error: BaseException) -> str:
    """The first sentence of an error: Ray's are pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:120] if lines else ''}"

"""Run many episodes: simulators step in supervised worker processes while the policy decides for the others in batches.

The unit of work is an `EpisodeRequest`: an initial state and a sampling key. The policy sees fixed-size batches of
whatever episodes are waiting for a decision, and nothing it computes may depend on which ones those are. So an
episode's record depends on its request alone, not on the number of workers, their speed, or how often one died.
"""

import dataclasses
import heapq
import logging
import math
import selectors
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from cso_jax.rollout import checks
from cso_jax.rollout.episodes import ActFn, Episode, EpisodeRecord, EpisodeRequest, Interrupted, PoolStats, RolloutError
from cso_jax.rollout.worker import Command, Failure, MakeEnvironments, Reply, WorkerProcess, refused

START_ATTEMPTS = 3
STOP_POLL_S = 0.2
CLOSE_GRACE_S = 5.0

_logger = logging.getLogger(__name__)


class _Worker:
    """A place in the pool: its current process, if any, and the episodes in its slots."""

    def __init__(self, number: int, slots: int) -> None:
        self.number = number
        self.process: WorkerProcess | None = None
        self.episodes: list[Episode | None] = [None] * slots
        self.commands: list[Command] = []
        self.held = 0  # episodes that wait for the policy
        self.stale = False  # the outstanding answer belongs to a run that was given up
        self.start_failures = 0
        self.finished = 0

    @property
    def running(self) -> int:
        return sum(episode is not None for episode in self.episodes)

    def forget(self) -> None:
        self.episodes = [None] * len(self.episodes)
        self.commands = []
        self.held = 0


@dataclasses.dataclass
class _Job:
    """One call of `run`."""

    requests: Sequence[EpisodeRequest]
    act: ActFn
    keep_observations: bool
    on_episode: Callable[[int, EpisodeRecord], None] | None
    records: list[EpisodeRecord | None]
    queue: list[int]  # heap of request indices still to be started
    remaining: int
    failures: dict[int, int] = dataclasses.field(default_factory=dict)
    waiting: deque[tuple[_Worker, int]] = dataclasses.field(default_factory=deque)  # (worker, slot), oldest first


class WorkerPool:
    """`workers` processes with `slots` environments each, shared by every task of a run.

    The policy is called with `batch_size` rows (default: `slots`, the slots of one worker), so with two or more
    workers the simulators of one step while the policy decides for another. `step_timeout_s` holds per reset or
    chunk. `recycle_after_episodes` replaces a process after that many episodes, against simulators that leak memory
    (0: never). `log` receives one line per supervision event. Processes start on the first `run`.

    Call it from one thread. A context manager; without one, processes end with the parent.
    """

    def __init__(
        self,
        make_environments: MakeEnvironments,
        settings: dict[str, Any],
        *,
        workers: int,
        slots: int,
        batch_size: int | None = None,
        step_timeout_s: float = 60.0,
        start_timeout_s: float = 120.0,
        max_attempts: int = 3,
        recycle_after_episodes: int = 0,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.batch_size = slots if batch_size is None else batch_size
        if min(workers, slots, self.batch_size, max_attempts) < 1 or recycle_after_episodes < 0:
            raise ValueError(
                f"workers, slots, batch_size and max_attempts must be at least 1 and recycle_after_episodes at least 0,"
                f" got {workers}, {slots}, {self.batch_size}, {max_attempts} and {recycle_after_episodes}"
            )
        self.restarts = 0
        self.stats = PoolStats()
        self._make_environments = make_environments
        self._settings = settings
        self._slots = slots
        self._step_timeout_s = step_timeout_s
        self._start_timeout_s = start_timeout_s
        self._max_attempts = max_attempts
        self._recycle_after = recycle_after_episodes
        self._log = log or _logger.warning
        self._workers = [_Worker(number, slots) for number in range(workers)]
        # What a turn of the loop costs must not grow with the number of workers, so it looks at these few only:
        self._absent = set(range(workers))  # have no process
        self._candidates: set[int] = set()  # may have room for an episode
        self._answering = selectors.DefaultSelector()  # owe an answer
        self._next_deadline = math.inf  # no answer is overdue before it
        self._closed = False
        self._job: _Job | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every worker process; idle ones close their environments first. Safe to call twice."""
        if not self._closed:
            self._answering.close()
        self._closed = True
        processes = [worker.process for worker in self._workers if worker.process is not None]
        for process in processes:
            process.ask_to_close()
        deadline = time.monotonic() + CLOSE_GRACE_S
        for process in processes:
            process.finish(max(0.0, deadline - time.monotonic()))
        for worker in self._workers:
            worker.process = None
            worker.forget()

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

        `on_episode(request index, record)` is called here as episodes end, in an order that depends on timing. `stop`
        is asked between batches.

        Raises:
          RolloutError: an episode failed `max_attempts` times, or the environments cannot be built.
          Interrupted: `stop` returned true. Unfinished episodes are dropped, the pool can be used again; the same
            holds for an exception from `act` or `on_episode` and for KeyboardInterrupt.
          RuntimeError: the pool is closed, or already inside `run`.
        """
        if self._closed:
            raise RuntimeError("this worker pool is closed")
        if self._job is not None:
            raise RuntimeError("this worker pool is already running; use one pool per thread, or wait")
        count = len(requests)
        job = _Job(requests, act, keep_observations, on_episode, [None] * count, list(range(count)), count)
        self._job = job
        started = time.perf_counter()
        try:
            while job.remaining:
                if stop is not None and stop():
                    raise Interrupted(f"stopped with {job.remaining} of {count} episodes unfinished")
                self._recycle()
                self._start_workers(job)
                self._assign(job)
                self._collect(job, block=not job.waiting, poll_s=math.inf if stop is None else STOP_POLL_S)
                if job.waiting:
                    self._decide(job)
        except Exception:
            self._abandon()
            raise
        except BaseException:  # KeyboardInterrupt may have struck in the middle of a message
            self._kill_all()
            raise
        finally:
            self._job = None
            self.stats.run_s += (passed := time.perf_counter() - started)
            self.stats.worker_s += passed * len(self._workers)
        return [record for record in job.records if record is not None]

    # ------------------------------------------------------------------------------------------- giving work out

    def _recycle(self) -> None:
        """End the processes that have served long enough; `_accepts` has let their slots run empty."""
        if not self._recycle_after:
            return
        for worker in self._workers:
            process = worker.process
            if process is not None and not process.busy and not worker.running and self._due_for_recycling(worker):
                process.ask_to_close()
                process.finish(CLOSE_GRACE_S)
                self._gone(worker)
                self.stats.recycled += 1

    def _start_workers(self, job: _Job) -> None:
        for number in sorted(self._absent):
            if number >= job.remaining:
                return
            worker = self._workers[number]
            try:
                worker.process = WorkerProcess(
                    self._make_environments,
                    self._settings,
                    self._slots,
                    name=f"rollout-worker-{worker.number}",
                    start_timeout_s=self._start_timeout_s,
                    command_timeout_s=self._step_timeout_s,
                )
            except OSError as error:
                raise refused(error, "config.rollout.workers") from None
            self._absent.remove(number)
            worker.finished = 0
            self._watch(worker.process, worker)

    def _watch(self, process: WorkerProcess, worker: _Worker) -> None:
        """From now on the process owes an answer."""
        self._answering.register(process.connection, selectors.EVENT_READ, worker)
        self._next_deadline = min(self._next_deadline, process.deadline)

    def _gone(self, worker: _Worker) -> None:
        worker.process = None
        self._absent.add(worker.number)

    def _assign(self, job: _Job) -> None:
        """Start queued episodes in free slots, in request order, least loaded worker first."""
        if not job.queue:
            return
        self._candidates = {number for number in self._candidates if self._accepts(self._workers[number])}
        useful = min(len(self._workers), max(1, job.remaining))
        # Fewer episodes than slots: leave a share to workers that are still starting instead of filling the first.
        share = min(self._slots, math.ceil(job.remaining / useful))
        ready = [(self._workers[number].running, number) for number in self._candidates]
        ready = [entry for entry in ready if entry[0] < share]
        heapq.heapify(ready)
        given = {}
        while job.queue and ready:
            running, number = heapq.heappop(ready)
            worker = given[number] = self._workers[number]
            slot = worker.episodes.index(None)
            index = heapq.heappop(job.queue)
            request = job.requests[index]
            worker.episodes[slot] = Episode(index, request)
            worker.commands.append((slot, "reset", request.init, request.record))
            if running + 1 < share:
                heapq.heappush(ready, (running + 1, number))
        self._dispatch(given.values())

    def _accepts(self, worker: _Worker) -> bool:
        if worker.process is None or worker.process.busy or worker.running == self._slots:
            return False
        return not self._due_for_recycling(worker)

    def _due_for_recycling(self, worker: _Worker) -> bool:
        return 0 < self._recycle_after <= worker.finished

    def _dispatch(self, workers: Iterable[_Worker]) -> None:
        """Send those of the workers that are idle their commands, once none of their episodes waits for the policy.

        Sending part of them would split the worker's slots into groups that never meet again, and so call the policy
        more often on emptier batches.
        """
        for worker in workers:
            process = worker.process
            if process is not None and worker.commands and not process.busy and not worker.held:
                process.send(worker.commands)
                worker.commands = []
                self._watch(process, worker)

    def _decide(self, job: _Job) -> None:
        """Call the policy for the oldest waiting episodes, padded to the batch size by repeating the first."""
        rows = [job.waiting.popleft() for _ in range(min(self.batch_size, len(job.waiting)))]
        episodes = [episode for worker, slot in rows if (episode := worker.episodes[slot]) is not None]
        padded = episodes + [episodes[0]] * (self.batch_size - len(episodes))
        observations = {name: np.stack([e.observation[name] for e in padded]) for name in padded[0].observation}
        checks.observations(observations, padded)
        keys = np.stack([e.request.key for e in padded])
        index = np.array([len(e.actions) for e in padded], np.int32)
        started = time.perf_counter()
        actions, extras = job.act(observations, keys, index, tuple(e.request.init.task for e in padded))
        actions = np.asarray(actions, np.float32)
        extras = {name: np.asarray(values) for name, values in extras.items()}
        self.stats.act_s += time.perf_counter() - started
        self.stats.decisions += len(episodes)
        self.stats.batches += 1
        self.stats.rows += self.batch_size
        checks.outputs(actions, extras, padded, len(episodes))
        for row, ((worker, slot), episode) in enumerate(zip(rows, episodes, strict=True)):
            # Copies: a view would keep the whole padded batch alive for as long as the record.
            action = actions[row].copy()
            kept = {name: values[row].copy() for name, values in extras.items()}
            episode.decide(action, kept, keep_observation=job.keep_observations)
            worker.commands.append((slot, "step", action))
            worker.held -= 1
        self._dispatch({worker.number: worker for worker, _ in rows}.values())

    # ------------------------------------------------------------------------------------------- taking results in

    def _collect(self, job: _Job, *, block: bool, poll_s: float) -> None:
        """Take in every answer that is there; with `block`, wait for the first one, a deadline, or `poll_s`."""
        if not self._answering.get_map():
            return
        timeout = max(0.0, min(self._next_deadline - time.monotonic(), poll_s)) if block else 0.0
        started = time.perf_counter()
        answers = self._answering.select(None if math.isinf(timeout) else timeout)
        self.stats.wait_s += time.perf_counter() - started
        for key, _ in answers:
            worker: _Worker = key.data
            process = worker.process
            assert process is not None
            self._answering.unregister(process.connection)
            answer = process.receive()
            if isinstance(answer, Failure):
                self._handle_failure(job, worker, answer)
            else:
                self._handle_reply(job, worker, answer)
        if time.monotonic() >= self._next_deadline:
            self._find_overdue(job)

    def _find_overdue(self, job: _Job) -> None:
        """Give up the workers that are past their deadlines, and find the next one."""
        self._next_deadline = -math.inf  # should the failure of one end the run, the others are looked at in the next
        for key in list(self._answering.get_map().values()):
            process = key.data.process
            failure = None if process.connection.poll() else process.overdue()
            if failure is not None:
                self._answering.unregister(process.connection)
                self._handle_failure(job, key.data, failure)
        waited_for = (key.data.process for key in self._answering.get_map().values())
        self._next_deadline = min((process.deadline for process in waited_for), default=math.inf)

    def _handle_reply(self, job: _Job, worker: _Worker, reply: Reply) -> None:
        worker.start_failures = 0
        self.stats.worker_rss = max(self.stats.worker_rss, reply.rss)
        self._candidates.add(worker.number)
        stale, worker.stale = worker.stale, False
        if stale:
            return
        for slot, result in reply.results:
            episode = worker.episodes[slot]
            if episode is None:
                continue
            self.stats.steps += result.steps
            self.stats.physics_s += result.physics_s
            self.stats.render_s += result.render_s
            episode.advance(result)
            if not result.done:
                job.waiting.append((worker, slot))
                worker.held += 1
                continue
            worker.episodes[slot] = None
            worker.finished += 1
            record = episode.finish(keep_observations=job.keep_observations)
            job.records[episode.index] = record
            job.remaining -= 1
            self.stats.episodes += 1
            if job.on_episode is not None:
                job.on_episode(episode.index, record)

    def _handle_failure(self, job: _Job, worker: _Worker, failure: Failure) -> None:
        """Kill the worker's process and queue its episodes again; raise where another try is pointless."""
        process = worker.process
        assert process is not None
        commands, victims, stale = process.commands, worker.episodes, worker.stale
        process.kill()
        self._gone(worker)
        worker.stale = False
        worker.forget()
        self.restarts += 1
        job.waiting = deque(entry for entry in job.waiting if entry[0] is not worker)
        for victim in victims:
            if victim is not None:
                heapq.heappush(job.queue, victim.index)
        if failure.starting:
            worker.start_failures += 1
            self._log(f"rollout worker {worker.number} did not start: {failure.line}")
            if failure.fatal or worker.start_failures >= START_ATTEMPTS:
                tries = "" if failure.fatal else f" ({worker.start_failures} attempts)"
                raise _with_trace(
                    f"the environments could not be built{tries}: {failure.line}; {failure.remedy}", failure
                )
            return
        if stale:
            self._log(f"rollout worker {worker.number} replaced while idle: {failure.line}")
            return
        blamed = commands if failure.position is None else [commands[failure.position]]
        culprits = [victim for command in blamed if (victim := victims[command[0]]) is not None]
        names = ", ".join(sorted({victim.request.init.name for victim in culprits}))
        again = sum(victim is not None for victim in victims)
        self._log(f"rollout worker {worker.number} replaced, {again} episodes run again; {failure.line} [{names}]")
        for victim in culprits:
            attempts = job.failures[victim.index] = job.failures.get(victim.index, 0) + 1
            if failure.fatal or attempts >= self._max_attempts:
                name = victim.request.init.name
                raise _with_trace(
                    f"episode {victim.index} from {name} failed after {attempts} attempt(s): {failure.line}; "
                    f"{failure.remedy}",
                    failure,
                )

    def _abandon(self) -> None:
        """Drop all episodes; answers that are still to come will be thrown away by the next run."""
        for worker in self._workers:
            worker.forget()
            worker.stale = worker.process is not None and worker.process.busy and not worker.process.starting
        self._candidates = set(range(len(self._workers)))

    def _kill_all(self) -> None:
        for worker in self._workers:
            worker.forget()
            if worker.process is not None:
                if worker.process.connection in self._answering.get_map():
                    self._answering.unregister(worker.process.connection)
                worker.process.kill()
                self._gone(worker)


def _with_trace(message: str, failure: Failure) -> RolloutError:
    error = RolloutError(message)
    if failure.traceback:
        error.add_note("In the worker process:\n" + failure.traceback)
    return error

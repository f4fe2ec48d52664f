"""What the pool's own thread does for a decision, with up to thousands of workers, and what of an episode travels.

    python tests/benchmarks/bench_scaling.py [--workers=2,16,64,256,1024] [--slots=8] [--chunk_ms=20]

The workers are simulated: each has its own pipe, real messages go through it, and an answer comes `chunk_ms` per
command after the question, as from a simulator; a few processes hold the other ends of all pipes. What is measured is
the CPU time of the thread that runs the pool (so other jobs on the machine disturb little), without the policy's call.
"""

import argparse
import heapq
import itertools
import multiprocessing
import pickle
import resource
import selectors
import sys
import time
import types
from typing import ClassVar

import numpy as np

from cso_jax.envs.protocol import ChunkResult, TrainInit
from cso_jax.rollout import pool
from cso_jax.rollout.episodes import EpisodeRequest
from cso_jax.rollout.worker import CLOSE, Reply, WorkerProcess

DECISIONS = 8  # of an episode
STATE = 39
TOKENS, SUPPORT, CONTEXT = 8, 5, (1, 64)
HOSTS = 2


def host(connections, chunk_s: float) -> None:
    """Answers for many workers, each message `chunk_s` per command after it came."""
    selector = selectors.DefaultSelector()
    counts: dict[int, dict[int, int]] = {}
    for number, connection in enumerate(connections):
        selector.register(connection, selectors.EVENT_READ, number)
        counts[number] = {}
        connection.send(Reply([], 0))
    due: list[tuple[float, int, Reply]] = []
    order = itertools.count()
    while selector.get_map():
        wait = max(0.0, due[0][0] - time.monotonic()) if due else None
        for key, _ in selector.select(wait):
            try:
                commands = key.fileobj.recv()
            except (EOFError, OSError):
                commands = CLOSE
            if commands == CLOSE:
                selector.unregister(key.fileobj)
                continue
            results = [(command[0], answer(counts[key.data], command)) for command in commands]
            reply = key.fileobj, Reply(results, 0)
            heapq.heappush(due, (time.monotonic() + chunk_s * len(commands), next(order), reply))
        while due and due[0][0] <= time.monotonic():
            connection, reply = heapq.heappop(due)[2]
            connection.send(reply)


def answer(counts: dict[int, int], command) -> ChunkResult:
    """What a simulator of a robot from state says; every episode has `DECISIONS` decisions."""
    slot = command[0]
    counts[slot] = 0 if command[1] == "reset" else counts[slot] + 1
    done = counts[slot] == DECISIONS
    return ChunkResult(
        observation={"state": np.zeros(STATE, np.float32)}, success=done, done=done, steps=8 * (counts[slot] > 0),
        physics_s=0.0, render_s=0.0, frames=[],
    )  # fmt: skip


class Simulated(WorkerProcess):
    """The pool's handle on a worker whose other end a `host` holds."""

    waiting: ClassVar[list] = []  # ends of pipes that have no worker yet

    def __init__(self, make_environments, settings, slots, *, name, start_timeout_s, command_timeout_s) -> None:
        self.connection = self.waiting.pop()
        self.commands = ()
        self.busy = self.starting = True
        self.deadline = time.monotonic() + start_timeout_s
        self._timeout_s = command_timeout_s
        self._progress = types.SimpleNamespace(value=0)
        self._seen = 0

    def ask_to_close(self) -> None:
        self.connection.send(CLOSE)

    def finish(self, grace_s: float) -> None:
        self.connection.close()


class Policy:
    """Answers of the right shapes, and how much of this thread's time they took."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, observations, keys, index, tasks):
        started = time.thread_time()
        rows = len(keys)
        extras = {
            "skill": np.zeros((rows, TOKENS), np.int32),
            "log_prob": np.zeros((rows, TOKENS), np.float32),
            "support": np.zeros((rows, TOKENS, SUPPORT), np.int32),
            "context": np.zeros((rows, *CONTEXT), np.float32),
        }
        actions = np.zeros((rows, 8, 4), np.float32)
        self.seconds += time.thread_time() - started
        return actions, extras


def measure(workers: int, slots: int, chunk_s: float) -> tuple[float, float, float, int]:
    """Microseconds of the pool's thread per decision, decisions per second, rows filled, bytes of a pickled record."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(workers)]
    Simulated.waiting = [ours for ours, _ in pipes]
    hosts = [
        context.Process(target=host, args=([theirs for _, theirs in pipes[first::HOSTS]], chunk_s), daemon=True)
        for first in range(min(HOSTS, workers))
    ]
    for one in hosts:
        one.start()
    for _, theirs in pipes:
        theirs.close()
    act = Policy()
    episodes = max(600, 2 * workers * slots)
    requests = [
        EpisodeRequest(TrainInit("task", number), np.array([number, 0], np.uint32)) for number in range(episodes)
    ]
    with pool.WorkerPool(lambda *_: [], {}, workers=workers, slots=slots) as one:
        one.run(requests[: workers * slots], act, keep_observations=True)  # all have started
        before, act.seconds = one.stats.as_dict(), 0.0
        started, wall = time.thread_time(), time.perf_counter()
        records = one.run(requests, act, keep_observations=True)
        spent, wall = time.thread_time() - started - act.seconds, time.perf_counter() - wall
        after = one.stats.as_dict()
    decisions = after["decisions"] - before["decisions"]
    filled = decisions / (after["rows"] - before["rows"])
    for each in hosts:
        each.join(5)
    return 1e6 * spent / decisions, decisions / wall, filled, len(pickle.dumps(records[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="2,16,64,256,1024")
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--chunk_ms", type=float, default=20.0, help="what a simulator takes for one chunk of actions")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    pool.WorkerProcess = Simulated
    for workers in map(int, options.workers.split(",")):
        cost, rate, filled, size = measure(workers, options.slots, options.chunk_ms / 1000)
        limit = workers / (options.chunk_ms / 1000)
        sys.stdout.write(
            f"{workers:5} workers x {options.slots} slots: {cost:6.0f} us of the pool's thread per decision "
            f"(at most {1e6 / cost:,.0f} decisions/s), {rate:,.0f} decisions/s here, the simulators' limit "
            f"{limit:,.0f}; rows filled {filled:.0%}; a record of {DECISIONS} decisions {size:,} bytes\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Several robots, one policy call: requests that wait are stacked, padded to a compiled size and answered together.

The policy runs in one thread of its own, so that the event loop goes on reading, refusing and answering health checks
while it computes. What arrives meanwhile forms the next batch. Each client has at most one request waiting: a newer one
takes its place, and the older is refused as superseded.
"""

import asyncio
import time
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from cso_jax import telemetry
from cso_jax.runtime.metrics import ServerMetrics
from cso_jax.runtime.requests import Refusal
from cso_jax.runtime.serving import Row, ServedPolicy, Session, act_on_rows, padded_size


class Chunk(NamedTuple):
    """An answer: actions `[T, A]`, which decision of which episode it is, and how long it waited and computed."""

    actions: np.ndarray
    episode: int
    decision_index: int
    waited_s: float
    policy_s: float


class _Waiting(NamedTuple):
    session: Session
    arrived: float
    deadline_s: float | None
    answer: asyncio.Future[Chunk]


class Batcher:
    """Call `run()` as a task; `submit` from the same event loop."""

    def __init__(self, policy: ServedPolicy, metrics: ServerMetrics, window_s: float = 0.002) -> None:
        self._policy = policy
        self._metrics = metrics
        self._window_s = window_s
        self._largest = max(policy.batch_sizes)
        self._waiting: dict[Hashable, _Waiting] = {}
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")
        self.clients = 0
        """How many clients may send: the batch is not held open for more than that."""

    def submit(self, client: Hashable, session: Session, deadline_s: float | None) -> asyncio.Future[Chunk]:
        """Ask for the next decision of a session; the future has a `Chunk` or a `Refusal`."""
        self.withdraw(client, "superseded", "a newer observation arrived before this one's turn")
        answer: asyncio.Future[Chunk] = asyncio.get_running_loop().create_future()
        self._waiting[client] = _Waiting(session, time.monotonic(), deadline_s, answer)
        self._idle.clear()
        self._arrived.set()
        return answer

    def withdraw(self, client: Hashable, reason: str, text: str) -> None:
        """Refuse what a client has waiting, if anything."""
        waiting = self._waiting.pop(client, None)
        if waiting and not waiting.answer.done():
            waiting.answer.set_exception(Refusal(reason, text))

    async def idle(self) -> None:
        """Wait until nothing is waiting or computed."""
        await self._idle.wait()

    async def run(self) -> None:
        """Answer what is submitted until cancelled."""
        try:
            while True:
                await self._arrived.wait()
                await self._window()
                batch = self._take()
                if batch:
                    await self._answer(batch)
                if not self._waiting:
                    self._arrived.clear()
                    self._idle.set()
        finally:
            for client in list(self._waiting):
                self.withdraw(client, "shutting_down", "the server stops")
            self._thread.shutdown(wait=False)

    async def _window(self) -> None:
        """Give the other clients a moment, where there are others."""
        until = time.monotonic() + self._window_s
        while len(self._waiting) < min(self._largest, self.clients):
            left = until - time.monotonic()
            if left <= 0:
                return
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                self._arrived.set()
                return

    def _take(self) -> list[tuple[_Waiting, Row]]:
        """The oldest requests, as many as fit; each becomes its session's next decision."""
        batch = []
        for client in list(self._waiting)[: self._largest]:
            waiting = self._waiting.pop(client)
            if waiting.answer.done():
                continue  # the connection went away
            try:
                self._in_time(waiting)
                batch.append((waiting, waiting.session.decide()))
            except Refusal as refusal:
                waiting.answer.set_exception(refusal)
            except ValueError as error:  # several tasks and none chosen
                waiting.answer.set_exception(Refusal("task", str(error)))
        return batch

    async def _answer(self, batch: list[tuple[_Waiting, Row]]) -> None:
        rows = [row for _, row in batch]
        episodes = [waiting.session.episode for waiting, _ in batch]
        began = time.monotonic()
        try:
            chunks = await asyncio.get_running_loop().run_in_executor(self._thread, act_on_rows, self._policy, rows)
        except Exception as error:  # whatever the policy raises, the robots must hear of it and the server go on
            telemetry.warn(f"the policy failed: {type(error).__name__}: {error}")
            for waiting, _ in batch:
                if not waiting.answer.done():
                    text = f"the policy failed ({type(error).__name__}: {str(error)[:200]}); see the server's log"
                    waiting.answer.set_exception(Refusal("policy", text))
            return
        seconds = time.monotonic() - began
        self._metrics.called(len(rows), padded_size(len(rows), self._policy.batch_sizes), seconds)
        for (waiting, row), episode, chunk in zip(batch, episodes, chunks, strict=True):
            if waiting.answer.done():
                continue
            if not np.isfinite(chunk).all():
                waiting.answer.set_exception(Refusal("policy", "the policy answered actions that are not finite"))
                continue
            try:
                self._in_time(waiting)
            except Refusal as refusal:
                waiting.answer.set_exception(refusal)
                continue
            answer = Chunk(chunk, episode, row.decision_index, began - waiting.arrived, seconds)
            waiting.answer.set_result(answer)

    def _in_time(self, waiting: _Waiting) -> None:
        late = time.monotonic() - waiting.arrived
        if waiting.deadline_s is not None and late > waiting.deadline_s:
            wanted = f"expected an answer within {waiting.deadline_s * 1000:g} ms, {late * 1000:.0f} ms have passed"
            raise Refusal("deadline", f"{wanted}: send a new observation, or a longer deadline_ms")

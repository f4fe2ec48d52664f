"""One client's connection, in either of two dialects. A bad request is refused and the connection kept.

`OpenpiConnection` speaks to openpi's clients: the server sends metadata first, then each binary frame is an
observation and gets a binary frame with `actions`, or a text frame that says why not. `VlaEvalConnection` speaks
vla-eval's protocol 1: typed messages, one action per observation, the rest of the chunk kept here until its execution
horizon is used up.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections import deque
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

import cso_jax
from cso_jax.runtime.batching import Batcher, Chunk
from cso_jax.runtime.manifest import Manifest
from cso_jax.runtime.metrics import ServerMetrics
from cso_jax.runtime.requests import PROTOCOL, PROTOCOL_VERSION, Reading, Refusal, Request, message_bytes, read_request
from cso_jax.runtime.serving import Session
from cso_jax.runtime.wire import Bounds, Form, WireError, pack, unpack

VLA_EVAL_PROTOCOL = 1
_UNSENT = 8  # answers that a client has not read yet: more, and its requests are not read either


@dataclasses.dataclass
class Hub:
    """What all connections of a server share."""

    manifest: Manifest
    batcher: Batcher
    metrics: ServerMetrics
    reading: Reading
    draining: bool = False
    robots: dict[str, "Connection"] = dataclasses.field(default_factory=dict)
    closing: set[asyncio.Task[None]] = dataclasses.field(default_factory=set)


@dataclasses.dataclass(frozen=True)
class Identity:
    """Who connects: the robot's name ("": none), the client program's own id, whether it takes the robot over."""

    robot: str = ""
    client: str = ""
    take_over: bool = False


class Connection:
    """What both dialects share: the session, the robot's name, answers in tasks of their own."""

    form: Form

    def __init__(self, hub: Hub, socket: ServerConnection, identity: Identity, seed: int | None) -> None:
        self.hub = hub
        self.socket = socket
        self.identity = identity
        self.session = Session(hub.manifest, seed)
        self.bounds = Bounds(bytes=message_bytes(hub.manifest))
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = ""

    async def run(self) -> None:
        """Answer until the client goes, or the server closes the connection."""
        batcher = self.hub.batcher
        batcher.clients += 1
        self.hub.metrics.connections += 1
        try:
            self._claim()
            await self.greet()
            async for frame in self.socket:
                await self.receive(frame)
                while len(self._tasks) > _UNSENT:
                    await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        except ConnectionClosed:
            pass
        except Refusal as refusal:  # the robot has another client
            self.count(refusal)
            await self.socket.close(1008, refusal.line()[:120])
        finally:
            batcher.clients -= 1
            self.hub.metrics.connections -= 1
            for task in self._tasks:
                task.cancel()  # and with it what waits: nobody is there to hear the answer
            if self.hub.robots.get(self.identity.robot) is self:
                del self.hub.robots[self.identity.robot]

    def end(self, why: str) -> None:
        """Take no more requests, and close. In a task: a client that is gone takes seconds not to answer."""
        self._ended = why
        self.hub.batcher.withdraw(self, "robot_taken", why)
        task = asyncio.get_running_loop().create_task(self.socket.close(1008, why[:120]))
        self.hub.closing.add(task)
        task.add_done_callback(self.hub.closing.discard)

    async def answered(self) -> None:
        """Wait until every answer is on its way."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def greet(self) -> None:
        """What the server says first."""

    async def receive(self, frame: bytes | str) -> None:
        """Handle one frame; whatever it holds, nothing is raised but ConnectionClosed."""
        raise NotImplementedError

    def decoded(self, frame: bytes | str) -> Any:
        """The value of a frame. Raises Refusal."""
        try:
            return unpack(frame, self.form, self.bounds)
        except WireError as error:
            raise Refusal("malformed", str(error)) from None

    def take_in(self, request: Request) -> None:
        """Let the session know what a checked request says. Raises Refusal, and then nothing has changed."""
        if self.hub.draining:
            raise Refusal("shutting_down", "the server stops: connect to another one", request.request_id)
        if self._ended:
            raise Refusal("robot_taken", self._ended, request.request_id)
        if request.task is None and self.session.task is None:
            raise Refusal("task", self.session.no_task(), request.request_id)
        changed = request.episode is not None and request.episode != self.session.episode
        if request.reset or changed:
            self.session.reset(request.episode)
        if request.task is not None:
            self.session.set_task(request.task)
        self.session.observe(request.observation)

    def ask(self, deadline_s: float | None, then) -> None:
        """Ask for the session's next decision; `then(chunk or refusal)` is awaited in a task of its own."""
        answer = self.hub.batcher.submit(self, self.session, deadline_s)

        async def finish() -> None:
            try:
                result: Chunk | Refusal = await answer
            except Refusal as refusal:
                result = refusal
            with contextlib.suppress(ConnectionClosed):
                await then(result)

        task = asyncio.get_running_loop().create_task(finish())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def count(self, refusal: Refusal) -> None:
        """Count a refusal, by its reason."""
        self.hub.metrics.refusals[refusal.reason] += 1

    def _claim(self) -> None:
        """Be the one client of the robot. Raises Refusal."""
        name = self.identity.robot
        if not name:
            return
        other = self.hub.robots.get(name)
        if other is not None and (reason := robot_taken(self.hub, self.identity)):
            raise Refusal("robot_taken", reason)
        self.hub.robots[name] = self
        if other is not None:
            other.end(f"another client has taken over robot {name}")


def robot_taken(hub: Hub, identity: Identity) -> str:
    """Why a client cannot have the robot that it names; empty if it can. A program that comes back may."""
    other = hub.robots.get(identity.robot) if identity.robot else None
    if other is None or identity.take_over or (identity.client and identity.client == other.identity.client):
        return ""
    return (
        f"robot {identity.robot!r} has a client already: stop that one, or connect with the header X-Take-Over: 1 to "
        "take the robot over"
    )


def metadata(hub: Hub, robot: str = "") -> dict[str, Any]:
    """What openpi's client gets as `get_server_metadata()`: protocol, version and the whole manifest."""
    return {
        "protocol": PROTOCOL,
        "protocol_version": PROTOCOL_VERSION,
        "server": f"cso_jax {cso_jax.__version__}",
        "images": "chw" if hub.reading.channels_first else "hwc",
        "rename": dict(hub.reading.rename),
        "robot": robot,
        "manifest": hub.manifest.to_plain(),
    }


class OpenpiConnection(Connection):
    """Observations in, chunks out: `{"actions": [T, A], "server_timing": {...}}`, and what the request said echoed."""

    form: Form = "openpi"
    _total_ms = 0.0

    async def greet(self) -> None:
        await self.socket.send(pack(metadata(self.hub, self.identity.robot)))

    async def receive(self, frame: bytes | str) -> None:
        arrived = time.monotonic()
        self.hub.metrics.requests += 1
        try:
            request = read_request(self.decoded(frame), self.hub.manifest, self.hub.reading)
            self.take_in(request)
        except Refusal as refusal:
            await self._refuse(refusal)
            return

        async def reply(result: Chunk | Refusal) -> None:
            if isinstance(result, Refusal):
                result.request_id = request.request_id
                await self._refuse(result)
            else:
                await self._answer(request, result, arrived)

        self.ask(request.deadline_s, reply)

    async def _refuse(self, refusal: Refusal) -> None:
        self.count(refusal)
        await self.socket.send(refusal.line())

    async def _answer(self, request: Request, chunk: Chunk, arrived: float) -> None:
        timing = {"infer_ms": 1000 * chunk.policy_s, "wait_ms": 1000 * chunk.waited_s}
        if self._total_ms:
            timing["prev_total_ms"] = self._total_ms
        answer = {
            "actions": chunk.actions,
            "server_timing": timing,
            "episode": chunk.episode,
            "decision_index": chunk.decision_index,
        }
        echoed = {"request_id": request.request_id, "sent_at": request.sent_at}
        await self.socket.send(pack(answer | {key: value for key, value in echoed.items() if value is not None}))
        seconds = time.monotonic() - arrived
        self._total_ms = 1000 * seconds
        self.hub.metrics.answered(seconds)


class VlaEvalConnection(Connection):
    """Messages `{type, payload, seq, timestamp}`: hello, episode_start, observation -> action, episode_end, error."""

    form: Form = "vla-eval"

    def __init__(self, hub: Hub, socket: ServerConnection, identity: Identity, seed: int | None) -> None:
        super().__init__(hub, socket, identity, seed)
        self._left: deque[Any] = deque()
        self._reading = dataclasses.replace(hub.reading, ignore_unknown=True)  # benchmarks send what they have

    async def receive(self, frame: bytes | str) -> None:
        seq = 0
        try:
            kind, payload, seq = _message(self.decoded(frame))
            if kind == "hello":
                await self._send("hello", self._hello(), seq)
            elif kind == "episode_start":
                self._begin(payload)
            elif kind == "observation":
                self.hub.metrics.requests += 1
                await self._observed(payload, seq)
        except Refusal as refusal:
            await self._refuse(refusal, seq)

    def _hello(self) -> dict[str, Any]:
        manifest, action = self.hub.manifest, self.hub.manifest.action
        return {
            "harness_version": f"cso_jax {cso_jax.__version__}",
            "protocol_version": VLA_EVAL_PROTOCOL,
            "model_server": f"cso_jax {manifest.name}",
            "capabilities": {},
            "action_spec": {"action": {"name": "action", "dims": action.dim, "format": action.units}},
            "observation_spec": {
                entry.name: {"name": "image", "dims": 0, "format": "rgb_hwc_uint8"}
                if entry.kind == "image"
                else {"name": entry.name, "dims": entry.shape[0], "format": "raw"}
                for entry in manifest.observation
            }
            | {"language": {"name": "language", "dims": 0, "format": "language"}},
            "cso_jax": metadata(self.hub, self.identity.robot),
        }

    def _begin(self, payload: dict[str, Any]) -> None:
        self.hub.batcher.withdraw(self, "superseded", "a new episode began before this observation's turn")
        self._left.clear()
        self.session.reset()
        task = payload.get("task")
        names = [task.get(key) for key in ("name", "description")] if isinstance(task, dict) else []
        for name in names:
            if isinstance(name, str) and any(name in (known.name, known.sentence) for known in self.hub.manifest.tasks):
                self.session.set_task(name)

    async def _observed(self, payload: dict[str, Any], seq: int) -> None:
        arrived = time.monotonic()
        plain = {key: value for key, value in payload.items() if key != "task_description"}
        if payload.get("task_description") is not None:
            plain["prompt"] = payload["task_description"]
        self.take_in(read_request(plain, self.hub.manifest, self._reading))
        if self._left:
            await self._act(seq, arrived)
            return

        async def reply(result: Chunk | Refusal) -> None:
            if isinstance(result, Refusal):
                await self._refuse(result, seq)
            elif result.episode != self.session.episode:
                await self._refuse(Refusal("superseded", "a new episode began while the policy computed"), seq)
            else:
                self._left = deque(result.actions[: self.hub.manifest.action.execution_horizon])
                await self._act(seq, arrived)

        self.ask(None, reply)

    async def _act(self, seq: int, arrived: float) -> None:
        await self._send("action", {"actions": self._left.popleft()}, seq)
        self.hub.metrics.answered(time.monotonic() - arrived)

    async def _refuse(self, refusal: Refusal, seq: int) -> None:
        self.count(refusal)
        await self._send("error", {"error": refusal.line(), "reason": refusal.reason}, seq)

    async def _send(self, kind: str, payload: dict[str, Any], seq: int) -> None:
        message = {"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()}
        await self.socket.send(pack(message, self.form))


def _message(plain: Any) -> tuple[str, dict[str, Any], int]:
    kinds = ("hello", "episode_start", "observation", "episode_end", "error")
    if not isinstance(plain, dict) or not {"type", "payload", "seq"} <= plain.keys():
        raise Refusal("malformed", "expected a message with type, payload, seq and timestamp")
    kind, payload, seq = plain["type"], plain["payload"], plain["seq"]
    if kind not in kinds or not isinstance(payload, dict) or type(seq) is not int:
        raise Refusal("malformed", f"expected a type of {', '.join(kinds)} with a map as payload and a number as seq")
    return kind, payload, seq


DIALECTS: dict[str, type[Connection]] = {"openpi": OpenpiConnection, "vla-eval": VlaEvalConnection}

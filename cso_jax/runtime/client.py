"""A robot's side of the policy server, synchronous. No JAX; the clock is monotonic, so that a changed time of day is
nothing to it.

    with PolicyClient("192.168.0.2", 8000, token=..., robot="left") as client:
        answer = client.infer(observation, task="put the cup on the plate")
        answer.actions  # [T, A] float32

A lost connection is an exception of the request under way and is made again, with growing waits, at the next one. The
task and the number of the episode travel with each request, so that a server that was started again knows them.
"""

import contextlib
import os
import socket as sockets
import threading
import time
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from cso_jax.runtime.manifest import Manifest
from cso_jax.runtime.requests import PROTOCOL, PROTOCOL_VERSION, Refusal, read_refusal
from cso_jax.runtime.wire import Bounds, WireError, pack, unpack

_LARGEST = 16 * 2**20  # of an answer or of metadata, in bytes
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0


class ClientError(RuntimeError):
    """Whatever keeps a client from having actions."""


class ServerGone(ClientError):
    """No connection, or it was lost; the next request tries again."""


class AnswerLate(ClientError):
    """No answer in time. The connection is kept, and the answer dropped when it comes."""


class Mismatch(ClientError):
    """The server speaks something else, or serves another policy than before."""


class Refused(ClientError):
    """The server's own words why not; `reason` is one word: shape, task, superseded, unauthorized, ..."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.line())
        self.reason = refusal.reason


class Answer(NamedTuple):
    """A chunk `[T, A]` float32, and how long it took: on the way and back, waiting, in the policy."""

    actions: np.ndarray
    round_trip_s: float
    waited_s: float
    policy_s: float
    episode: int
    decision_index: int


class PolicyClient:
    """One robot's connection. A lock makes `infer` safe from several threads; they wait for each other."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int | None = 8000,
        *,
        token: str = "",
        robot: str = "",
        take_over: bool = False,
        timeout_s: float = 5.0,
        connect_s: float = 30.0,
    ) -> None:
        """`host` is a name, an address, or a whole ws:// or wss:// URL. `connect_s`: how long to look for a server.

        `take_over` holds for the first connection: it takes the robot from another client.
        """
        address = f"[{host}]" if ":" in host and "://" not in host and not host.startswith("[") else host
        self.url = (address if "://" in address else f"ws://{address}") + (f":{port}" if port is not None else "")
        self.timeout_s = timeout_s
        self.connect_s = connect_s
        self.metadata: dict[str, Any] = {}
        self._manifest: Manifest | None = None
        self._headers = {"X-Client": uuid.uuid4().hex}
        self._headers |= {"X-Robot": robot} if robot else {}
        self._headers |= {"Authorization": f"Bearer {token}"} if token else {}
        self._take_over = take_over
        self._socket: ClientConnection | None = None
        self._open = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._requests = 0
        self._episode = 0
        self._task: str | None = None

    @property
    def manifest(self) -> Manifest:
        """What the server's policy says about itself. Connects first where there is no connection yet."""
        if self._manifest is None:
            self.connect()
        assert self._manifest is not None
        return self._manifest

    def connect(self) -> None:
        """Connect, unless connected. Raises ServerGone after `connect_s`, Refused, Mismatch."""
        with self._lock:
            self._connected(time.monotonic() + self.connect_s)

    def reset(self) -> None:
        """Begin another episode with the next request."""
        with self._lock:
            self._episode += 1

    def infer(
        self,
        observation: Mapping[str, Any],
        *,
        task: str | None = None,
        reset: bool = False,
        deadline_s: float | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """The next chunk. `task`: name or sentence, kept for later requests; `reset`: another episode begins.

        With `deadline_s` the server refuses to answer later than that. Raises a ClientError: ServerGone, AnswerLate,
        Refused, Mismatch.
        """
        with self._lock:
            now = time.monotonic()
            until = now + (self.timeout_s if timeout_s is None else timeout_s)
            self._episode += int(reset)
            self._task = task or self._task
            socket = self._connected(max(until, now + self.connect_s) if self._manifest is None else until)
            self._requests += 1
            number, sent = self._requests, time.monotonic()
            request = {**observation, "episode": self._episode, "request_id": number, "sent_at": sent}
            request |= {"task": self._task} if self._task is not None else {}
            request |= {"deadline_ms": 1000 * deadline_s} if deadline_s is not None else {}
            try:
                frame = pack(request)
            except WireError as error:
                raise ClientError(str(error)) from None
            try:
                socket.send(frame)
                answer = self._answer(socket, number, until)
            except (ConnectionClosed, OSError) as error:
                self._drop()
                text = f"{self.url}: the connection was lost ({_why(error)}); the next request connects again"
                raise ServerGone(text) from None
            return self._checked(answer, time.monotonic() - sent)

    def close(self) -> None:
        """Say goodbye. Connects again where `infer` is called later."""
        self._drop()

    def __enter__(self) -> "PolicyClient":
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _drop(self) -> None:
        self._socket = None
        with contextlib.suppress(Exception):
            self._open.close()

    def _connected(self, until: float) -> ClientConnection:
        wait = _FIRST_WAIT_S
        while self._socket is None:
            try:
                self._socket = self._opened(until)
                break
            except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed) as error:
                left = until - time.monotonic()
                if left <= 0:
                    what = f"no policy server ({_why(error)}): start it, or check host and port"
                    raise ServerGone(f"{self.url}: {what}") from None
                time.sleep(min(wait, max(left, 0.0)))
                wait = min(2 * wait, _LONGEST_WAIT_S)
        return self._socket

    def _opened(self, until: float) -> ClientConnection:
        left = max(0.1, until - time.monotonic())
        headers = self._headers | ({"X-Take-Over": "1"} if self._take_over else {})
        try:
            opening = connect(
                self.url,
                additional_headers=headers,
                compression=None,
                max_size=_LARGEST,
                open_timeout=left,
                close_timeout=1.0,
                proxy=None,  # a robot's network is its own
            )
            socket = self._open.enter_context(opening)
        except InvalidStatus as error:
            status, body = error.response.status_code, (error.response.body or b"").decode("utf-8", "replace").strip()
            if status == 503:
                raise OSError(body or "the server is full") from None  # worth another try
            if status in (401, 409):
                raise Refused(read_refusal(body)) from None
            text = f"{self.url}: expected a policy server, found one that answers {status} ({body[:80]})"
            raise Mismatch(text) from None
        except InvalidURI as error:
            raise ClientError(f"{self.url}: expected ws://HOST:PORT ({error})") from None
        try:
            give_up_after(socket, self.timeout_s)
            self._greeted(socket.recv(max(0.1, until - time.monotonic())))
        except BaseException:
            self._drop()
            raise
        self._take_over = False
        return socket

    def _greeted(self, frame: bytes | str) -> None:
        """Read the metadata, which the server sends first. Raises Mismatch, Refused."""
        if isinstance(frame, str):
            raise Refused(read_refusal(frame))
        try:
            found = unpack(frame, bounds=Bounds(bytes=_LARGEST, depth=64, items=10**6))
        except WireError as error:
            raise Mismatch(f"{self.url}: expected metadata, found something else ({error})") from None
        spoken = (found.get("protocol"), found.get("protocol_version")) if isinstance(found, dict) else None
        if spoken != (PROTOCOL, PROTOCOL_VERSION):
            raise Mismatch(
                f"{self.url}: expected protocol {PROTOCOL} {PROTOCOL_VERSION}, found {spoken}; run the same version of "
                "cso_jax on both sides"
            )
        try:
            manifest = Manifest.from_plain(found.get("manifest"))
        except ValueError as error:
            raise Mismatch(f"{self.url}: {error}") from None
        if self._manifest is not None and manifest != self._manifest:
            raise Mismatch(
                f"{self.url}: expected the policy {self._manifest.name!r} as before, found {manifest.name!r} or "
                "another version of it; start the robot's program again"
            )
        self.metadata, self._manifest = found, manifest

    def _answer(self, socket: ClientConnection, number: int, until: float) -> Any:
        """The answer to this request; those to earlier ones, which were given up, are dropped."""
        while True:
            try:
                frame = socket.recv(max(0.0, until - time.monotonic()))
            except TimeoutError:
                raise AnswerLate(f"{self.url}: no answer within {self.timeout_s:g} s; the server may be busy") from None
            if isinstance(frame, str):
                refusal = read_refusal(frame)
                if refusal.request_id in (None, str(number)):
                    raise Refused(refusal)
                continue
            try:
                answer = unpack(frame, bounds=Bounds(bytes=_LARGEST))
            except WireError as error:
                raise Mismatch(f"{self.url}: expected actions, found something else ({error})") from None
            if isinstance(answer, dict) and answer.get("request_id") == number:
                return answer

    def _checked(self, answer: dict[str, Any], round_trip_s: float) -> Answer:
        action = self.manifest.action
        actions: Any = answer.get("actions")
        expected = (action.chunk_length, action.dim)
        good = isinstance(actions, np.ndarray) and actions.shape == expected and actions.dtype.kind == "f"
        if not good or not np.isfinite(actions).all():
            array = isinstance(actions, np.ndarray)
            found = f"{actions.dtype}{list(actions.shape)}" if array else type(actions).__name__
            raise Mismatch(f"{self.url}: expected finite actions {list(expected)}, found {found}")
        timing = answer.get("server_timing")
        timing = timing if isinstance(timing, dict) else {}

        def number(of: Mapping[str, Any], key: str) -> float:
            value = of.get(key, 0)
            return float(value) if isinstance(value, (int, float)) else 0.0

        return Answer(
            np.asarray(actions, np.float32),
            round_trip_s,
            number(timing, "wait_ms") / 1000,
            number(timing, "infer_ms") / 1000,
            int(number(answer, "episode")),
            int(number(answer, "decision_index")),
        )


def give_up_after(socket: ClientConnection, seconds: float) -> None:
    """Have the kernel end a connection whose other side takes nothing in, so that sending cannot block for ever."""
    option = getattr(sockets, "TCP_USER_TIMEOUT", None)
    if option is not None:
        with contextlib.suppress(OSError):
            socket.socket.setsockopt(sockets.IPPROTO_TCP, option, max(1, int(1000 * seconds)))


def _why(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return " ".join(str(error).split())[:160] or type(error).__name__

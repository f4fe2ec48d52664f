"""A connection to rosbridge: the newest message of each topic, and publishing. No JAX, no ROS.

rosbridge v2 over a websocket: operations are JSON, data comes as CBOR frames `{"op": "publish", "topic", "msg"}` with
numeric arrays as the typed arrays of RFC 8746. A thread of its own reads, keeps the newest message of each topic only,
and connects again, with growing waits, where the connection was lost. What was to be sent meanwhile is refused: a robot
must not be told later what it should have done before.
"""

import base64
import contextlib
import importlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

from cso_jax import telemetry
from cso_jax.runtime.client import give_up_after

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0
_TOO_LARGE = 1009  # the code with which a websocket is closed after a message above its limit
_TYPES = {
    64: "u1", 65: ">u2", 66: ">u4", 67: ">u8", 68: "u1", 69: "<u2", 70: "<u4", 71: "<u8",
    72: "i1", 73: ">i2", 74: ">i4", 75: ">i8", 77: "<i2", 78: "<i4", 79: "<i8",
    80: ">f2", 81: ">f4", 82: ">f8", 84: "<f2", 85: "<f4", 86: "<f8",
}  # fmt: skip
"""RFC 8746: from the tag of a typed array to NumPy's name of its elements."""


class RosbridgeError(RuntimeError):
    """What keeps a robot on rosbridge from being observed or commanded; one line."""


class NotThere(RosbridgeError):
    """Something has not come, or no longer comes; it may come by itself."""


def package(name: str) -> Any:
    """The module `name` of cbor2 or Pillow. Raises RosbridgeError, with the command that installs both, without it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        text = f"a robot on rosbridge needs the package {error.name}: pip install cbor2 pillow (the extra rosbridge)"
        raise RosbridgeError(text) from error


class Message(NamedTuple):
    """What a topic said, and when it arrived, in `time.monotonic` seconds."""

    value: dict[str, Any]
    arrived: float


class RosbridgeLink:
    """A connection that is made, and made again, in the background. `publish` may be called from any thread."""

    def __init__(
        self,
        url: str,
        subscribed: Mapping[str, str],
        advertised: Mapping[str, str],
        *,
        throttle_ms: int,
        largest_bytes: int,
        patience_s: float,
    ) -> None:
        """`subscribed` and `advertised` map topics to their message types; a topic's messages come at least
        `throttle_ms` apart. What the other side has not taken in after `patience_s` ends the connection.

        Raises RosbridgeError for another address than a websocket's, and without the package cbor2.
        """
        if not url.startswith(("ws://", "wss://")):
            raise RosbridgeError(f"expected the address of rosbridge as ws://HOST:9090, found {url!r}")
        self.url = url
        self._loads = package("cbor2").loads
        self._subscribed, self._advertised = dict(subscribed), dict(advertised)
        self._throttle_ms, self._largest_bytes, self._patience_s = throttle_ms, largest_bytes, patience_s
        self._socket: ClientConnection | None = None
        self._newest: dict[str, Message] = {}
        self._problem = f"{url}: not connected yet"
        self._status = ""
        self._warned: set[str] = set()
        self._closed = threading.Event()
        self.malformed = 0  # frames that were ignored
        self._thread = threading.Thread(target=self._run, name="rosbridge", daemon=True)
        self._thread.start()

    def newest(self, topic: str) -> Message | None:
        """The newest message since the connection was made, if any."""
        return self._newest.get(topic)

    def require(self) -> None:
        """Raises NotThere while there is no connection, with the reason."""
        if self._socket is None:
            raise NotThere(self._problem)

    @property
    def said(self) -> str:
        """The last complaint of rosbridge itself, for the end of an error's line; empty without one."""
        return f" (rosbridge says: {self._status})" if self._status else ""

    def publish(self, topic: str, value: Mapping[str, Any]) -> None:
        """Send a message, now or never. Raises NotThere without a connection."""
        socket = self._socket
        if socket is None:
            raise NotThere(self._problem)
        try:
            socket.send(json.dumps({"op": "publish", "topic": topic, "msg": value}, allow_nan=False))
        except (ConnectionClosed, OSError) as error:
            raise NotThere(self._lost(error)) from None

    def close(self) -> None:
        """Unsubscribe and say goodbye; nothing is connected again."""
        with contextlib.suppress(WebSocketException, OSError):
            if (socket := self._socket) is not None:
                for topic in self._subscribed:
                    socket.send(json.dumps({"op": "unsubscribe", "topic": topic}))
                for topic in self._advertised:
                    socket.send(json.dumps({"op": "unadvertise", "topic": topic}))
        self._closed.set()  # not before: the thread then closes the connection
        with contextlib.suppress(WebSocketException, OSError):
            if (socket := self._socket) is not None:
                socket.close()
        self._thread.join(3.0)

    def _run(self) -> None:
        wait = _FIRST_WAIT_S
        while not self._closed.is_set():
            began = time.monotonic()
            try:
                with connect(
                    self.url,
                    compression=None,
                    max_size=self._largest_bytes,
                    open_timeout=5.0,
                    close_timeout=1.0,
                    proxy=None,  # a robot's network is its own
                ) as socket:
                    self._talk(socket)
            except Exception as error:  # the thread goes on, whatever there is at that address
                if self._socket is None:
                    what = f"no rosbridge ({_why(error)}): start rosbridge_server, or check host and port"
                    self._problem = f"{self.url}: {what}"
                else:
                    self._problem = self._lost(error)
            finally:
                self._socket = None
                self._newest = {}  # of before: it must not pass for what is there now
            wait = _FIRST_WAIT_S if time.monotonic() - began > _LONGEST_WAIT_S else wait
            self._closed.wait(wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)

    def _talk(self, socket: ClientConnection) -> None:
        """Subscribe, then take in what comes until the connection ends, which raises ConnectionClosed."""
        give_up_after(socket, self._patience_s)  # else a cable that is plugged in again delivers old commands at once
        self._status = ""
        for topic, kind in self._advertised.items():
            socket.send(json.dumps({"op": "advertise", "topic": topic, "type": kind}))
        for topic, kind in self._subscribed.items():
            asked = {"op": "subscribe", "topic": topic, "type": kind, "compression": "cbor"}
            socket.send(json.dumps(asked | {"queue_length": 1, "throttle_rate": self._throttle_ms}))
        self._socket = socket
        while not self._closed.is_set():
            frame, arrived = socket.recv(), time.monotonic()
            try:
                self._take(read_frame(frame, self._loads), arrived)
            except Exception as error:  # whatever a decoder says of whatever came
                self.malformed += 1
                self._warn("malformed", f"{self.url}: a frame was ignored, and so will others be ({_why(error)})")

    def _take(self, frame: dict[str, Any], arrived: float) -> None:
        if frame["op"] == "publish":
            if not isinstance(frame.get("msg"), dict):
                raise ValueError(f"expected a message, found {type(frame.get('msg')).__name__}")
            if frame.get("topic") in self._subscribed:
                self._newest[frame["topic"]] = Message(frame["msg"], arrived)
        elif frame["op"] == "status" and frame.get("level") in ("error", "warning"):
            self._status = " ".join(str(frame.get("msg")).split())[:160]
            self._warn("status", f"{self.url}: rosbridge says: {self._status}")

    def _warn(self, about: str, text: str) -> None:
        """Once: at thirty frames a second the second warning is one too many."""
        if about not in self._warned:
            self._warned.add(about)
            telemetry.warn(text)

    def _lost(self, error: BaseException) -> str:
        sent = error.sent if isinstance(error, ConnectionClosed) else None
        if sent is not None and sent.code == _TOO_LARGE:
            limit = f"{self._largest_bytes} bytes (RosbridgeSettings.largest_bytes)"
            return f"{self.url}: expected messages of at most {limit}, found a larger one; are the images compressed?"
        return f"{self.url}: the connection was lost ({_why(error)}) and is being made again{self.said}"


def read_frame(frame: bytes | str, loads: Callable[..., Any]) -> dict[str, Any]:
    """A frame as an object with a text "op"; typed arrays become NumPy's. `loads` is cbor2's.

    Raises ValueError, or whatever a decoder raises, for anything else.
    """
    found = json.loads(frame) if isinstance(frame, str) else loads(frame, tag_hook=_typed_array)
    if not isinstance(found, dict) or not isinstance(found.get("op"), str):
        raise ValueError("expected an operation of rosbridge, found something else")
    return found


def bytes_of(value: Any) -> bytes:
    """A message's `uint8[]`: bytes, a typed array, a list, or the base64 text of JSON. Raises ValueError."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return base64.b64decode(value, validate=True)
    return np.asarray(value, np.uint8).tobytes()


def _typed_array(first: Any, second: Any) -> Any:
    tag = first if hasattr(first, "tag") else second  # cbor2 5 calls with (decoder, tag), 6 with (tag, immutable)
    kind = _TYPES.get(tag.tag)
    return tag.value if kind is None else np.frombuffer(tag.value, kind)


def _why(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__

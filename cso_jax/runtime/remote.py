"""A policy server that somebody else runs, as an evaluation sees it: observations in, actions out. No JAX.

Two dialects: `openpi` (metadata first, then a chunk per observation) and `vla-eval` (a hello, then one action per
observation). Two mappings of observations: `own`, entries by the names that they have here, for servers of this
library, and `libero`, what openpi's and others' LIBERO policies are sent:

    observation/image, observation/wrist_image   turned by 180 degrees, resized with padding to 224 x 224
    observation/state [8]                        position 3, axis times angle 3 (angle in [0, 2 pi)), gripper 2
    prompt                                       the task's sentence

Every episode has a connection of its own while it runs, for servers that keep a state per connection.
"""

import concurrent.futures
import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.sync.client import ClientConnection, connect

from cso_jax.runtime.requests import PROTOCOL
from cso_jax.runtime.wire import Bounds, WireError, pack, unpack

_LARGEST = 64 * 2**20  # bytes of an answer or of metadata
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 5.0
_VLA_EVAL_PROTOCOL = 1
_EXECUTED = 5  # of a chunk, by openpi's own LIBERO client
LIBERO_IMAGE = 224


class RemoteError(RuntimeError):
    """Whatever keeps an evaluation from having actions, in one line."""


class _Lost(Exception):
    """The connection; the observation is sent again on a new one."""


@dataclasses.dataclass(frozen=True)
class Remote:
    """Where a policy is and how it is asked.

    `execute` actions of a chunk `[T, A]` are executed; 0 leaves it to the server's manifest, and to 5 without one.
    `timeout_s` is for one answer, `patience_s` for a server that cannot be reached.
    """

    url: str
    dialect: str = "openpi"
    mapping: str = "own"
    execute: int = 0
    invert_gripper: bool = False
    timeout_s: float = 60.0
    patience_s: float = 60.0


class _Link(Protocol):
    metadata: dict[str, Any]

    def ask(self, observation: dict[str, Any], sentence: str, task: str, first: bool, number: int) -> np.ndarray:
        """Actions `[T, A]` in the episode of that number. Raises RemoteError, _Lost."""

    def close(self) -> None: ...


class _OpenpiLink:
    def __init__(self, remote: Remote) -> None:
        self._socket, self._timeout_s = _opened(remote), remote.timeout_s
        self.metadata = _mapping(_received(self._socket, self._timeout_s, "openpi"), "metadata")

    def ask(self, observation: dict[str, Any], sentence: str, task: str, first: bool, number: int) -> np.ndarray:
        own = self.metadata.get("protocol") == PROTOCOL
        request = observation | ({"task": task, "reset": first} if own else {"prompt": sentence})
        _sent(self._socket, pack(request))
        answer = _mapping(_received(self._socket, self._timeout_s, "openpi"), "an answer with actions")
        return _actions(answer.get("actions"))

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._socket.close()


class _VlaEvalLink:
    def __init__(self, remote: Remote) -> None:
        self._socket, self._timeout_s = _opened(remote), remote.timeout_s
        self._number = 0
        hello = {"harness_version": "cso_jax", "protocol_version": _VLA_EVAL_PROTOCOL}
        self.metadata = self._asked("hello", hello, "hello")

    def ask(self, observation: dict[str, Any], sentence: str, task: str, first: bool, number: int) -> np.ndarray:
        if first:
            self._send("episode_start", {"task": {"name": task, "description": sentence}, "episode": number})
        answer = self._asked("observation", observation | {"task_description": sentence}, "action")
        return np.atleast_2d(_actions(answer.get("actions")))

    def _asked(self, kind: str, payload: dict[str, Any], wanted: str) -> dict[str, Any]:
        self._send(kind, payload)
        while True:
            found = _mapping(_received(self._socket, self._timeout_s, "vla-eval"), f"a message of type {wanted}")
            payload = _mapping(found.get("payload"), "a payload")
            if found.get("type") == "error":
                raise RemoteError(f"the server refused: {payload.get('error', 'nothing more was said')}")
            if found.get("type") == wanted:
                return payload

    def _send(self, kind: str, payload: dict[str, Any]) -> None:
        self._number += 1
        message = {"type": kind, "payload": payload, "seq": self._number, "timestamp": time.time()}
        _sent(self._socket, pack(message, "vla-eval"))

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._socket.close()


DIALECTS: dict[str, Callable[[Remote], _Link]] = {"openpi": _OpenpiLink, "vla-eval": _VlaEvalLink}


def libero_observation(row: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What LIBERO policies are sent, of one observation with the hand's pose (`config.env.libero.proprio=ee8`).

    Raises RemoteError where an entry is missing.
    """
    wanted = ("agentview_rgb", "eye_in_hand_rgb", "ee_pos", "ee_ori", "gripper_states")
    missing = [name for name in wanted if name not in row]
    if missing:
        raise RemoteError(
            f"the mapping libero needs {', '.join(wanted)}, and the environment shows no {missing[0]}: it takes LIBERO "
            "from cameras with --config.env.libero.proprio=ee8"
        )
    return {
        "observation/image": padded(row["agentview_rgb"][::-1, ::-1], LIBERO_IMAGE),
        "observation/wrist_image": padded(row["eye_in_hand_rgb"][::-1, ::-1], LIBERO_IMAGE),
        "observation/state": np.concatenate([row["ee_pos"], row["ee_ori"], row["gripper_states"]]).astype(np.float32),
    }


def padded(image: np.ndarray, size: int) -> np.ndarray:
    """A uint8 image `[H, W, 3]`, resized without a change of proportions and padded with black to `[size, size, 3]`."""
    height, width = image.shape[:2]
    scale = size / max(height, width)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = Image.fromarray(np.ascontiguousarray(image)).resize(inner, Image.Resampling.BILINEAR)
    found = np.zeros((size, size, 3), np.uint8)
    top, left = (size - inner[1]) // 2, (size - inner[0]) // 2
    found[top : top + inner[1], left : left + inner[0]] = np.asarray(resized)
    return found


MAPPINGS: dict[str, Callable[[Mapping[str, np.ndarray]], dict[str, Any]]] = {
    "own": lambda row: dict(row),
    "libero": libero_observation,
}


class RemoteActor:
    """Acts for batches of episodes by asking a server, a connection per episode; close it in the end."""

    def __init__(self, remote: Remote, sentences: Mapping[str, str], *, episodes: int, action_dim: int) -> None:
        """`sentences` by task; at most `episodes` run at a time. Raises RemoteError where there is no such server."""
        self.remote = remote
        self._sentences, self._action_dim = sentences, action_dim
        self._links: dict[bytes, tuple[_Link, int]] = {}
        self._begun = 0
        self._closed = False
        self._pool = concurrent.futures.ThreadPoolExecutor(max(1, episodes))
        probe = self._connected()
        self.metadata = {key: value for key, value in probe.metadata.items() if key != "manifest"}
        manifest = probe.metadata.get("manifest") if probe.metadata.get("protocol") == PROTOCOL else None
        action = manifest.get("action", {}) if isinstance(manifest, dict) else {}
        of_a_chunk = 1 if remote.dialect == "vla-eval" else int(action.get("execution_horizon", _EXECUTED))
        self.execute = remote.execute or of_a_chunk
        probe.close()

    def __call__(
        self, observations: Mapping[str, np.ndarray], keys: np.ndarray, decision_index: np.ndarray, tasks: Sequence[str]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Actions `[B, E, A]` float32, each row asked for on its episode's connection, all at the same time."""
        names = [np.ascontiguousarray(key).tobytes() for key in keys]
        rows: dict[bytes, int] = {}
        for number, name in enumerate(names):
            rows.setdefault(name, number)  # rows beyond the episodes that run are padding: another row again
        asked = {}
        for name, number in rows.items():
            first = bool(decision_index[number] == 0)
            if first:
                self.ended(keys[number])  # where an episode is run again
                self._links[name] = (self._connected(), self._begun)
                self._begun += 1
            elif name not in self._links:
                raise RemoteError(f"{self.remote.url}: an episode goes on that was not begun here")
            row = {entry: value[number] for entry, value in observations.items()}
            asked[name] = self._pool.submit(self._ask, name, row, tasks[number], first)
        found = {name: future.result() for name, future in asked.items()}
        return np.stack([found[name] for name in names]), {}

    def ended(self, key: np.ndarray) -> None:
        """The episode of this key has ended: so does its connection."""
        found = self._links.pop(np.ascontiguousarray(key).tobytes(), None)
        if found is not None:
            found[0].close()

    def close(self) -> None:
        """End all connections."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        for link, _ in self._links.values():
            link.close()
        self._links.clear()

    def _ask(self, key: bytes, row: Mapping[str, np.ndarray], task: str, first: bool) -> np.ndarray:
        observation = MAPPINGS[self.remote.mapping](row)
        link, number = self._links[key]
        until = time.monotonic() + self.remote.patience_s
        while True:
            try:
                actions = link.ask(observation, self._sentences[task], task, first, number)
                break
            except _Lost as lost:
                if not first or self._closed or time.monotonic() > until:
                    raise RemoteError(
                        f"{self.remote.url}: the connection was lost in an episode ({lost}); the same command goes on "
                        "with the episodes that are missing"
                    ) from None
                link = self._connected()
                self._links[key] = (link, number)
        if actions.ndim != 2 or actions.shape[1] != self._action_dim or len(actions) < self.execute:
            raise RemoteError(
                f"{self.remote.url}: expected at least {self.execute} actions of {self._action_dim} numbers, found "
                f"{list(actions.shape)}; --execute says how many are executed"
            )
        if not np.isfinite(actions).all():
            raise RemoteError(f"{self.remote.url}: the server answered with numbers that are not finite")
        chosen = actions[: self.execute].astype(np.float32)
        if self.remote.invert_gripper:
            chosen[:, -1] = -chosen[:, -1]
        return chosen

    def _connected(self) -> _Link:
        until, wait = time.monotonic() + self.remote.patience_s, _FIRST_WAIT_S
        while True:
            try:
                return DIALECTS[self.remote.dialect](self.remote)
            except (_Lost, OSError, TimeoutError, InvalidHandshake) as error:
                if self._closed or time.monotonic() + wait > until:
                    why = " ".join(str(error).split())[:120]
                    raise RemoteError(
                        f"{self.remote.url}: no policy server ({why}); start it, or check host and port"
                    ) from None
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)


def _opened(remote: Remote) -> ClientConnection:
    try:
        return connect(
            remote.url, compression=None, max_size=_LARGEST, open_timeout=10.0, close_timeout=1.0, proxy=None,
            ping_interval=None,  # a server that compiles answers nothing meanwhile; timeout_s is what counts
        )  # fmt: skip
    except (InvalidURI, ValueError) as error:
        raise RemoteError(f"{remote.url}: expected ws://HOST:PORT ({error})") from None


def _sent(socket: ClientConnection, frame: bytes) -> None:
    try:
        socket.send(frame)
    except (ConnectionClosed, OSError) as error:
        raise _Lost(str(error)) from None


def _received(socket: ClientConnection, timeout_s: float, form: Any) -> Any:
    try:
        frame = socket.recv(timeout_s)
    except TimeoutError:
        raise RemoteError(f"the server gave no answer within {timeout_s:g} s") from None
    except (ConnectionClosed, OSError) as error:
        raise _Lost(str(error)) from None
    if isinstance(frame, str):  # both dialects write their errors as text
        raise RemoteError(f"the server refused: {' '.join(frame.split())[-300:]}")
    try:
        return unpack(frame, form, Bounds(bytes=_LARGEST, depth=64, items=10**6))
    except WireError as error:
        raise RemoteError(f"the server speaks something else ({error}); see --dialect") from None


def _mapping(found: Any, what: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise RemoteError(f"expected {what}, found {type(found).__name__}; see --dialect")
    return {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}


def _actions(found: Any) -> np.ndarray:
    actions = np.asarray(found) if isinstance(found, (list, tuple, np.ndarray)) else None
    if actions is None or actions.dtype.kind not in "fiu":
        raise RemoteError(f"expected an array of actions, found {type(found).__name__}")
    return actions.astype(np.float64)

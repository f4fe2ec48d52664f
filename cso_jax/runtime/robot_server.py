"""A robot, real or simulated, for a training computer: an `Environment` behind a websocket. No JAX.

    server = RobotServer(schema, environment, port=9000)
    with server:
        server.wait()

One training computer at a time: another one is answered 409. The same port has /healthz, /schema, and the operator's
page. Without a token only this machine is listened to. An episode under way ends with its connection.
"""

import http
import json
import logging
import threading
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import Server, ServerConnection, serve

from cso_jax.envs.protocol import ChunkResult, Environment, EvalInit, InitState, TrainInit
from cso_jax.runtime.operator import BUTTONS, Aborted, Operator
from cso_jax.runtime.requests import Refusal
from cso_jax.runtime.schema import FORMAT, VERSION, Schema
from cso_jax.runtime.server import authorised, is_loopback
from cso_jax.runtime.wire import Bounds, WireError, pack, unpack

_LOG = logging.getLogger(__name__)
_BOUNDS = Bounds(bytes=2**20, depth=4, items=256)  # of a request: a chunk of actions, or a reset


class RobotServer:
    """Serves one environment. A context manager: it listens within it, in threads of its own."""

    def __init__(
        self,
        schema: Schema,
        environment: Environment,
        *,
        host: str = "127.0.0.1",
        port: int = 9000,
        token: str = "",
        operator: Operator | None = None,
    ) -> None:
        """Raises ValueError for an address that other machines reach without a token."""
        if not token and not is_loopback(host):
            raise ValueError(f"--host={host} can be reached from other machines, and there is no token: give one")
        self.schema = schema
        self._environment = environment
        self._host, self._port, self._token = host, port, token
        self._operator = operator
        self._busy = threading.Lock()
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that it listens to."""
        assert self._server is not None
        return int(self._server.socket.getsockname()[1])

    def __enter__(self) -> "RobotServer":
        self._server = serve(
            self._client, self._host, self._port, process_request=self._http, compression=None, max_size=_BOUNDS.bytes
        )
        self._thread = threading.Thread(target=self._server.serve_forever, name="robot server", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None and self._thread is not None
        self._server.shutdown()
        self._thread.join(10)
        self._environment.close()

    def wait(self) -> None:
        """Until the server is shut down, or interrupted."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(0.5)

    # ------------------------------------------------------------------------------------------------------ requests

    def _client(self, socket: ServerConnection) -> None:
        if not self._busy.acquire(blocking=False):
            socket.close(1008, "the robot has another client")
            return
        try:
            socket.send(pack({"protocol": FORMAT, "protocol_version": VERSION, "schema": self.schema.to_plain()}))
            for frame in socket:
                socket.send(self._answer(frame))
        except ConnectionClosed:
            _LOG.info("the training computer has gone")
        finally:
            self._environment.close()
            self._busy.release()

    def _answer(self, frame: bytes | str) -> bytes | str:
        try:
            return pack(_plain(self._execute(unpack(frame, bounds=_BOUNDS))))
        except WireError as error:
            return Refusal("malformed", str(error)).line()
        except Refusal as refusal:
            return refusal.line()
        except Aborted as error:
            return Refusal("aborted", str(error)).line()
        except Exception as error:  # whatever a driver raises: training is told, and the robot stays reachable
            _LOG.warning("the robot failed: %s", error, exc_info=True)
            return Refusal("robot", f"{type(error).__name__}: {error}").line()

    def _execute(self, asked: Any) -> ChunkResult:
        if isinstance(asked, dict) and asked.keys() == {"reset", "record"}:
            return self._environment.reset(self._init(asked["reset"]), record=asked["record"] is True)
        if isinstance(asked, dict) and asked.keys() == {"actions"}:
            return self._environment.step_chunk(self._actions(asked["actions"]))
        raise Refusal("malformed", "expected {reset, record} or {actions}")

    def _init(self, given: Any) -> InitState:
        kinds = {"train": TrainInit, "eval": EvalInit}
        known = [task.name for task in self.schema.tasks]
        try:
            task, split, index = given["task"], given["split"], given["index"]
            init = kinds[split](task, int(index))
        except (KeyError, TypeError, ValueError):
            raise Refusal("malformed", "reset: expected a task, a split (train or eval) and an index") from None
        if task not in known:
            raise Refusal("task", f"expected one of {', '.join(known)}; found {str(task)[:60]!r}")
        return init

    def _actions(self, given: Any) -> np.ndarray:
        size = len(self.schema.commands.names)
        good = isinstance(given, np.ndarray) and given.ndim == 2 and given.shape[1] == size and 0 < len(given) <= 1024
        if not good or given.dtype != np.float32:
            found = f"{given.dtype}{list(given.shape)}" if isinstance(given, np.ndarray) else type(given).__name__
            raise Refusal("shape", f"actions: expected float32 [E, {size}], found {found}")
        if not np.isfinite(given).all():
            raise Refusal("not_finite", "actions: expected finite numbers; nothing was executed")
        return np.array(given)

    # ---------------------------------------------------------------------------------------------------------- http

    def _http(self, socket: ServerConnection, request: Request) -> Response | None:
        """Plain GET requests; None goes on to the websocket."""
        if request.path == "/healthz":
            return socket.respond(http.HTTPStatus.OK, "OK\n")
        if self._operator is not None and request.path.startswith(f"/operator/{self._operator.key}"):
            button = request.path.removeprefix(f"/operator/{self._operator.key}").strip("/")
            if button in BUTTONS:
                self._operator.press(button)
            response = socket.respond(http.HTTPStatus.OK, self._operator.page())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = "text/html; charset=utf-8"
            return response
        if "Origin" in request.headers:
            return socket.respond(http.HTTPStatus.FORBIDDEN, "a web page may not drive a robot\n")
        if not authorised(request, self._token):
            return socket.respond(http.HTTPStatus.UNAUTHORIZED, "a token is needed: Authorization: Bearer TOKEN\n")
        if request.path == "/schema":
            return socket.respond(http.HTTPStatus.OK, json.dumps(self.schema.to_plain(), indent=2) + "\n")
        if request.headers.get("Upgrade", "").lower() != "websocket":
            return socket.respond(http.HTTPStatus.NOT_FOUND, "this is a robot's websocket\n")
        if self._busy.locked():
            return socket.respond(http.HTTPStatus.CONFLICT, "the robot has another client\n")
        return None


def _plain(result: ChunkResult) -> dict[str, Any]:
    return {
        "observation": dict(result.observation), "success": bool(result.success), "done": bool(result.done),
        "steps": int(result.steps), "physics_s": float(result.physics_s), "render_s": float(result.render_s),
        "frames": list(result.frames), "stages": [bool(stage) for stage in result.stages],
    }  # fmt: skip

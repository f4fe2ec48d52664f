"""The policy server: robots connect by websocket, their observations are answered with chunks of actions.

One port serves the websocket and, by plain GET, /healthz (and /health) and /metrics. Without a token the server listens
on this machine only. Requests with an Origin header, which browsers send, are refused: a web page must not drive a
robot.
"""

import asyncio
import base64
import dataclasses
import functools
import hmac
import ipaddress
import logging
from collections.abc import Callable
from http import HTTPStatus

from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from cso_jax import telemetry
from cso_jax.runtime.batching import Batcher
from cso_jax.runtime.connections import DIALECTS, Connection, Hub, Identity, metadata, robot_taken
from cso_jax.runtime.metrics import ServerMetrics
from cso_jax.runtime.requests import Reading, message_bytes
from cso_jax.runtime.serving import ServedPolicy
from cso_jax.runtime.wire import WireError, pack


@dataclasses.dataclass(frozen=True)
class Options:
    """How to serve. `port` 0 is any free one; `window_s` is how long a batch waits for other robots' requests."""

    host: str = "127.0.0.1"
    port: int = 8000
    dialect: str = "openpi"
    token: str = ""
    reading: Reading = dataclasses.field(default_factory=Reading)
    window_s: float = 0.002
    seed: int | None = None
    max_clients: int = 64
    drain_s: float = 10.0

    def __post_init__(self) -> None:
        if self.dialect not in DIALECTS:
            raise ValueError(f"expected the dialect {' or '.join(DIALECTS)}, found {self.dialect!r}")
        if not self.token and not is_loopback(self.host):
            raise ValueError(
                f"--host={self.host} can be reached from other machines, and there is no token: give --token-file, or "
                "set CSO_JAX_TOKEN, or listen on 127.0.0.1"
            )
        if self.token and not (self.token.isascii() and self.token.isprintable() and " " not in self.token):
            raise ValueError("expected a token of printable ASCII characters without spaces, found others in it")


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach a server there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class PolicyServer:
    """`await run(stop)` serves until `stop` is set: then running calls are finished and connections closed (1001)."""

    def __init__(self, policy: ServedPolicy, options: Options) -> None:
        self.policy = policy
        self.options = options
        self.metrics = ServerMetrics()
        self.port = 0
        self._connections: set[Connection] = set()
        self._count = 0

    async def run(self, stop: asyncio.Event, started: Callable[[int], None] | None = None) -> None:
        """Warm up, listen, call `started(port)`, serve. Raises OSError where the port is taken."""
        options, manifest = self.options, self.policy.manifest
        batcher = Batcher(self.policy, self.metrics, options.window_s)
        self._hub = Hub(manifest, batcher, self.metrics, options.reading)
        try:
            pack(metadata(self._hub))
        except WireError as error:
            raise ValueError(f"the manifest cannot be sent to clients: {error}") from None
        try:
            await asyncio.get_running_loop().run_in_executor(None, self.policy.warm_up)
        except Exception as error:  # whatever a compiler or a device says
            raise ValueError(f"the policy does not run here ({type(error).__name__}: {error})") from error
        batches = asyncio.create_task(batcher.run())
        try:
            async with serve(
                self._handle,
                options.host,
                options.port,
                process_request=self._before,
                origins=[None],
                compression=None,  # images do not get smaller, and it takes longer than the policy
                max_size=message_bytes(manifest),
                max_queue=4,
                logger=_quiet(),
            ) as server:
                self.port = next(iter(server.sockets)).getsockname()[1]
                if started:
                    started(self.port)
                stopping = asyncio.create_task(stop.wait())
                await asyncio.wait((stopping, batches), return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                if not batches.done():
                    await self._drain()
                server.close(close_connections=True)  # with 1001, going away
                await server.wait_closed()
            if batches.done():
                batches.result()  # raises what ended it
        finally:
            batches.cancel()

    async def _drain(self) -> None:
        """Answer what has been asked; ask for no more."""
        self._hub.draining = True
        try:
            async with asyncio.timeout(self.options.drain_s):
                await self._hub.batcher.idle()
                for connection in list(self._connections):
                    await connection.answered()
        except TimeoutError:
            telemetry.warn(f"still computing after {self.options.drain_s:g} s: closing the connections now")

    async def _handle(self, socket: ServerConnection) -> None:
        request = socket.request
        assert request is not None
        seed = None if self.options.seed is None else self.options.seed + 1_000_003 * self._count
        self._count += 1
        connection = DIALECTS[self.options.dialect](self._hub, socket, _identity(request), seed)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    def _before(self, socket: ServerConnection, request: Request) -> Response | None:
        """What is answered before a connection becomes a websocket: pages, and refusals."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return socket.respond(HTTPStatus.OK, "OK\n")
        if path == "/health":
            return _as(socket.respond(HTTPStatus.OK, '{"status": "ok"}\n'), "application/json")
        if not authorised(request, self.options.token):
            self.metrics.refusals["unauthorized"] += 1
            text = "refused (unauthorized): send the server's token as Authorization: Api-Key TOKEN, or Bearer TOKEN\n"
            response = socket.respond(HTTPStatus.UNAUTHORIZED, text)
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        if path == "/metrics":
            return _as(socket.respond(HTTPStatus.OK, self.metrics.text()), "text/plain; version=0.0.4; charset=utf-8")
        if taken := robot_taken(self._hub, _identity(request)):
            self.metrics.refusals["robot_taken"] += 1
            return socket.respond(HTTPStatus.CONFLICT, f"refused (robot_taken): {taken}\n")
        if self._hub.draining or len(self._connections) >= self.options.max_clients:
            reason = "shutting_down" if self._hub.draining else "full"
            self.metrics.refusals[reason] += 1
            text = f"refused ({reason}): {len(self._connections)} clients are connected; try again later\n"
            return socket.respond(HTTPStatus.SERVICE_UNAVAILABLE, text)
        return None


def authorised(request: Request, token: str) -> bool:
    """Whether a request has the token, or none is asked for ("")."""
    if not token:
        return True
    given = request.headers.get_all("Authorization")
    if len(given) != 1:
        return False
    scheme, _, found = given[0].partition(" ")
    if scheme.lower() == "basic":  # of an address ws://any:TOKEN@host: clients that cannot send headers have that
        found = _password(found)
    same = hmac.compare_digest(found.strip().encode(), token.encode())  # in constant time
    return scheme.lower() in ("api-key", "bearer", "basic") and same


def _password(encoded: str) -> str:
    try:
        return base64.b64decode(encoded.strip(), validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _identity(request: Request) -> Identity:
    def header(name: str) -> str:
        return next(iter(request.headers.get_all(name)), "")[:64]

    return Identity(header("X-Robot"), header("X-Client"), header("X-Take-Over").lower() in ("1", "true", "yes"))


def _as(response: Response, kind: str) -> Response:
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = kind
    return response


@functools.cache
def _quiet() -> logging.Logger:
    """websockets writes a traceback for each port scanner that does not speak HTTP."""
    logger = logging.getLogger("cso_jax.runtime.websockets")
    logger.setLevel(logging.CRITICAL)
    return logger

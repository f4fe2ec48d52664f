"""A policy server on a free loopback port, in a thread of the test's own."""

import asyncio
import contextlib
import threading

import msgpack
from websockets.sync.client import connect

from cso_jax.runtime.server import Options, PolicyServer
from cso_jax.runtime.wire import unpack


class Running:
    """The server of a `with` block, and how to stop it."""

    def __init__(self, policy, options: Options) -> None:
        self.server = PolicyServer(policy, options)
        self.error: BaseException | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(20)
        if self.error:
            raise self.error

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self.error = error
        finally:
            self._started.set()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await self.server.run(self._stop, lambda _port: self._started.set())

    def stop(self, *, wait: bool = True) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._stop.set)
        if wait:
            self._thread.join(20)
            assert not self._thread.is_alive()

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"


@contextlib.contextmanager
def running(policy, **options):
    server = Running(policy, Options(**{"port": 0, **options}))
    try:
        yield server
    finally:
        if hasattr(policy, "gate"):
            policy.gate.set()  # of one that was made to wait
        server.stop()
    assert server.error is None


@contextlib.contextmanager
def openpi(server: Running, **headers):
    """A bare socket that has read the metadata."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    with connect(server.url, compression=None, additional_headers=names, max_size=None) as socket:
        socket.metadata = unpack(socket.recv(10))
        yield socket


def received(socket):
    """The next frame: a decoded answer, or the text of a refusal."""
    frame = socket.recv(10)
    return frame if isinstance(frame, str) else unpack(frame)


def asked(socket, request):
    """Send, and wait for what comes. `request` is a value, or bytes to send as they are."""
    from cso_jax.runtime.wire import pack

    socket.send(request if isinstance(request, (bytes, str)) else pack(request))
    return received(socket)


def raw_array(data: bytes, dtype: str, shape) -> dict:
    """An array as openpi writes it, of any type at all."""
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


def raw(value) -> bytes:
    frame: bytes = msgpack.packb(value)
    return frame

"""A live page of what a robot does: cameras, commanded and measured joints, chunk seams, success. No JAX.

    with View(client.manifest, position_of=my_position) as view:
        view.episode("put the cup on the plate")
        ControlLoop(my_robot, client.manifest, infer, position_of=my_position, view=view).run(seconds=60)

The loop hands over references and numbers; what takes time, images to PNG and samples to JSON, is done in the thread of
whoever looks. Only this machine is listened to; for another one: ssh -L 8090:127.0.0.1:8090 ROBOT.
"""

import http
import importlib.resources
import json
import logging
import math
import secrets
import socketserver
import struct
import threading
import time
import urllib.parse
import zlib
from collections import Counter, deque
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import numpy as np

from cso_jax.runtime.manifest import Action, Manifest
from cso_jax.runtime.observer import Observer
from cso_jax.runtime.schema import Commands, Schema

PORT = 8090
_LOG = logging.getLogger(__name__)
_KEPT = 20_000  # samples, where a window holds more
_ANSWERED = 400  # samples per answer: encoding them must not keep the control loop from running
_RATE_S = 5.0
_LOCAL = ("127.0.0.1", "localhost", "::1")
_UPRIGHT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "flipped": lambda image: image[::-1],
    "rotated_180": lambda image: image[::-1, ::-1],
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class ViewError(RuntimeError):
    """The page cannot be served; one line."""


class Sample(NamedTuple):
    """A command or a measurement of all joints: `values` `[A]` at `when`, by the observer's clock; `arrived` by the
    machine's."""

    number: int
    kind: str
    when: float
    episode: int
    seam: bool
    values: list[float]
    arrived: float


class View(Observer):
    """Records the last `window_s` seconds, safe from any thread; within a `with` block it serves its page.

    Images are kept by reference, the newest of each camera: a driver that writes into the same array again may be seen
    half way.
    """

    def __init__(
        self,
        of: Manifest | Schema,
        *,
        port: int = PORT,
        position_of: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None = None,
        window_s: float = 30.0,
    ) -> None:
        """`position_of` reads from an observation the measured joints `[A]`, in the units of commands; without it the
        page shows commands only. `port` 0 is any free one."""
        self._about = of
        self._commands: Action | Commands = of.action if isinstance(of, Manifest) else of.commands
        self._orientations = {entry.name: entry.orientation for entry in of.observation if entry.kind == "image"}
        self._port, self._position_of, self._window_s = port, position_of, window_s
        self._run = secrets.token_hex(4)
        self._lock = threading.Lock()
        self._samples: deque[Sample] = deque(maxlen=_KEPT)
        self._number = self._looks = 0
        self._images: dict[str, tuple[int, np.ndarray]] = {}
        self._latencies: deque[float] = deque(maxlen=500)
        self._sources: dict[str, Callable[[], Mapping[str, int]]] = {}
        self._counted: Counter[str] = Counter()
        self._sentence, self._episode, self._successes, self._failures = "", 0, 0, 0
        self._server: _Server | None = None

    # ----------------------------------------------------------------------------------------------------- recording

    def episode(self, sentence: str) -> None:
        with self._lock:
            self._sentence = sentence
            self._episode += 1

    def observe(self, seen: Mapping[str, np.ndarray], when: float) -> None:
        position = self._measured(seen)
        with self._lock:
            self._looks += 1
            for name in self._orientations:
                if name in seen:
                    self._images[name] = (self._looks, seen[name])
            if position is not None:
                self._add("measured", position, when, False)

    def command(self, action: np.ndarray, when: float, *, seam: bool) -> None:
        values = np.asarray(action).tolist()
        with self._lock:
            self._add("commanded", values, when, seam)

    def answer(self, seconds: float) -> None:
        with self._lock:
            self._latencies.append(seconds)

    def watch(self, source: str, counts: Callable[[], Mapping[str, int]]) -> None:
        """As for any observer; what the replaced one had counted stays in the sum."""
        with self._lock:
            if source in self._sources:
                self._counted.update(self._sources[source]())
            self._sources[source] = counts

    def outcome(self, success: bool) -> None:
        with self._lock:
            self._successes += bool(success)
            self._failures += not success

    def _measured(self, seen: Mapping[str, np.ndarray]) -> list[float] | None:
        if self._position_of is None:
            return None
        try:  # a page must not stop a robot
            position = np.asarray(self._position_of(seen), np.float64)
            newest: list[float] = position.reshape(-1, len(self._commands.names))[-1].tolist()  # of a history
            return newest
        except Exception as error:
            _LOG.warning("the page shows no measured joints, position_of failed: %s: %s", type(error).__name__, error)
            self._position_of = None
            return None

    def _add(self, kind: str, values: list[float], when: float, seam: bool) -> None:
        self._number += 1
        self._samples.append(Sample(self._number, kind, when, self._episode, seam, values, time.monotonic()))
        while self._samples[0].when < when - self._window_s:
            self._samples.popleft()

    # ------------------------------------------------------------------------------------------------------- showing

    def state(self, since: int = 0) -> str:
        """JSON: how it stands, and up to 400 samples after number `since`, oldest first, each `[number, kind, when,
        episode, seam, values]`; `more` says whether there are others. Numbers that are not finite are null."""
        with self._lock:
            samples, number = list(self._samples), self._number
            images = {name: seen for name, (seen, _) in self._images.items()}
            latencies = list(self._latencies)
            counts = Counter(self._counted)
            for source in self._sources.values():
                counts.update(source())
            stands = {
                "run": self._run, "name": self._about.name, "task": self._sentence, "episode": self._episode,
                "successes": self._successes, "failures": self._failures,
            }  # fmt: skip
        since = since if since <= number else 0  # of the page of a program before this one
        begin = max(0, since + 1 - samples[0].number) if samples else 0
        chosen = samples[begin : begin + _ANSWERED]
        p50, p99 = np.quantile(latencies, (0.5, 0.99)).tolist() if latencies else (None, None)
        plain = stands | {
            "joints": self._commands.names, "units": self._commands.units, "window_s": self._window_s,
            "low": [_number(value) for value in self._commands.low],
            "high": [_number(value) for value in self._commands.high],
            "cameras": [[name, images.get(name, 0)] for name in self._orientations],
            "rate_hz": _rate(samples, time.monotonic()), "latency_p50_s": p50, "latency_p99_s": p99,
            "counts": dict(counts), "last": chosen[-1].number if chosen else number,
            "more": begin + len(chosen) < len(samples),
        }  # fmt: skip
        # One by one: the interpreter can change threads between samples, not within one call of the encoder.
        rows = ",".join(json.dumps([*one[:5], [_number(value) for value in one.values]]) for one in chosen)
        return json.dumps(plain, allow_nan=False)[:-1] + f', "samples": [{rows}]}}'

    def image(self, camera: str) -> bytes | None:
        """The newest image of a camera, upright, as PNG; None before the first. Raises KeyError for no such camera."""
        orientation = self._orientations[camera]
        with self._lock:
            _, image = self._images.get(camera, (0, None))
        if image is None:
            return None
        newest = image.reshape(-1, *image.shape[-3:])[-1]  # of a history
        return png(_UPRIGHT.get(orientation, lambda upright: upright)(newest))

    # ------------------------------------------------------------------------------------------------------- serving

    @property
    def address(self) -> str:
        """Of the page, within the `with` block."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def __enter__(self) -> "View":
        """Raises ViewError where the port cannot be had."""
        try:
            self._server = _Server(self, self._port)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise ViewError(
                f"the live page cannot have port {self._port}: {why}; choose another (--view=PORT), 0 is any free one"
            ) from None
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="view", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """On this machine's own address."""

    daemon_threads = True

    def __init__(self, view: View, port: int) -> None:
        self.view = view
        self.page = importlib.resources.files("cso_jax.runtime").joinpath("view.html").read_bytes()
        super().__init__(("127.0.0.1", port), _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's asks the DNS for a name, which a robot may not have

    def handle_error(self, request: Any, client_address: Any) -> None:
        _LOG.debug("a request of the live page failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = 10.0  # seconds that a silent connection keeps its thread
    server: _Server

    def do_GET(self) -> None:
        address = urllib.parse.urlsplit(self.path)
        if why := self._strange(address.path):
            self._say(http.HTTPStatus.FORBIDDEN, why)
        elif address.path == "/":
            self._send(http.HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        elif address.path == "/state.json":
            since = urllib.parse.parse_qs(address.query).get("since", ["0"])[-1]
            if since.isdecimal() and len(since) < 19:
                self._send(http.HTTPStatus.OK, "application/json", self.server.view.state(int(since)).encode())
            else:
                self._say(http.HTTPStatus.BAD_REQUEST, f"since: expected a whole number, found {since[:40]!r}")
        elif address.path.startswith("/camera/") and address.path.endswith(".png"):
            self._camera(urllib.parse.unquote(address.path.removeprefix("/camera/").removesuffix(".png")))
        else:
            self._say(http.HTTPStatus.NOT_FOUND, "expected /, /state.json?since=N or /camera/NAME.png")

    def log_message(self, format: str, *args: Any) -> None:
        _LOG.debug(format, *args)

    def _camera(self, name: str) -> None:
        try:
            image = self.server.view.image(name)
        except KeyError:
            self._say(http.HTTPStatus.NOT_FOUND, f"no camera {name[:60]!r}: the page lists those there are")
            return
        if image is None:
            self._say(http.HTTPStatus.NOT_FOUND, "no image yet: the robot has not been observed")
        else:
            self._send(http.HTTPStatus.OK, "image/png", image)

    def _strange(self, path: str) -> str:
        """Why a request does not come from this page or from a person: another web page, by itself or by a name of its
        own for this machine's address. Empty where it does."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or _hostname(hosts[0]) not in _LOCAL:
            return "the page is for this machine: open it as 127.0.0.1 or localhost"
        if self.headers.get("Origin", f"http://{hosts[0]}") != f"http://{hosts[0]}":
            return "another web page may not read this one"
        if path != "/" and self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return "another web page may not show this one's images"
        return ""

    def _say(self, status: http.HTTPStatus, text: str) -> None:
        self._send(status, "text/plain; charset=utf-8", f"{text}\n".encode())

    def _send(self, status: http.HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **_HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def png(image: np.ndarray) -> bytes:
    """uint8 `[H, W, 3]` as PNG: it needs zlib only, since Pillow is not among a robot's packages. Lossless and quick
    rather than small: it does not leave this machine."""
    height, width, _ = image.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each begins with its filter, 0: none
    rows[:, 1:] = image.reshape(height, 3 * width)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits per channel, RGB
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 1)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
              for kind, data in parts)  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _rate(samples: list[Sample], now: float) -> float:
    """Commands per second by the machine's clock, over the last few seconds."""
    arrived = [one.arrived for one in samples if one.kind == "commanded" and one.arrived > now - _RATE_S]
    return (len(arrived) - 1) / max(now - arrived[0], 1e-6) if len(arrived) > 1 else 0.0


def _number(value: float) -> float | None:
    """Six digits, None where it is not finite, which JSON does not know."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _hostname(host: str) -> str | None:
    try:
        return urllib.parse.urlsplit(f"//{host}").hostname
    except ValueError:
        return None

"""A rosbridge server with an arm and cameras behind it, on a free loopback port: what its clients see of ROS."""

import contextlib
import io
import json
import threading
import time

import cbor2
import numpy as np
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

STATE, COMMAND = "/puppet/joint_left", "/master/joint_left"
FRONT, WRIST = "/camera_f/color/image_raw/compressed", "/camera_l/color/image_raw/compressed"


def picture(top, bottom, *, height=48, width=64):
    """RGB `[H, W, 3]`, one colour above the other."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2], image[height // 2 :] = top, bottom
    return image


def encoded(image, form="JPEG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, form, **({"quality": 95} if form == "JPEG" else {}))
    return file.getvalue()


class FakeRosbridge:
    """Publishes every `period_s` what a client has subscribed to; the arm is at once where it is commanded to be.

    Whatever a test changes counts from the next message on: `silent` topics say nothing, `behind_s` shifts stamps,
    `say` puts frames as they are on the wire.
    """

    def __init__(self, period_s: float = 0.01) -> None:
        self.period_s = period_s
        self.names = [f"joint{number}" for number in range(7)]
        self.joints = np.arange(7) / 10
        self.images = {
            FRONT: encoded(picture((250, 20, 30), (20, 40, 250))),
            WRIST: encoded(picture((10, 200, 20), (240, 240, 10)), "PNG"),
        }
        self.typed, self.text, self.stamped = True, False, True
        self.silent: set[str] = set()
        self.behind_s: dict[str, float] = {}
        self.follows = True
        self.operations: list[dict] = []
        self.commands: list[dict] = []
        self.connections = 0
        self._say: list[bytes | str] = []
        self._sockets: set = set()
        self._server = serve(self._handle, "127.0.0.1", 0, compression=None, max_size=2**20)
        self.port = self._server.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def say(self, frame: bytes | str) -> None:
        self._say.append(frame)

    def drop(self) -> None:
        """Every connection, without a goodbye."""
        for socket in list(self._sockets):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(2)

    def __enter__(self) -> "FakeRosbridge":
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self.drop()
        self._thread.join(5)

    def asked(self, op: str) -> list[dict]:
        return [operation for operation in self.operations if operation["op"] == op]

    def _handle(self, socket) -> None:
        self.connections += 1
        self._sockets.add(socket)
        subscribed: list[str] = []
        threading.Thread(target=self._publish, args=(socket, subscribed), daemon=True).start()
        try:
            for text in socket:
                operation = json.loads(text)
                self.operations.append(operation)
                if operation["op"] == "subscribe":
                    assert operation["compression"] == "cbor" and operation["queue_length"] == 1
                    subscribed.append(operation["topic"])
                elif operation["op"] == "unsubscribe":
                    subscribed.remove(operation["topic"])
                elif operation["op"] == "publish":
                    self._take(operation)
        except ConnectionClosed:
            pass
        finally:
            self._sockets.discard(socket)

    def _take(self, operation: dict) -> None:
        header = operation["msg"].setdefault("header", {})
        header.setdefault("stamp", _now(0.0))  # as rosbridge does
        self.commands.append(operation)
        if self.follows:
            self.joints = np.asarray(operation["msg"]["position"])

    def _publish(self, socket, subscribed) -> None:
        with contextlib.suppress(ConnectionClosed, OSError):
            while True:
                while self._say:
                    socket.send(self._say.pop(0))
                for topic in list(subscribed):
                    if topic not in self.silent and (topic == STATE or topic in self.images):
                        socket.send(self._frame(topic))
                time.sleep(self.period_s)

    def _frame(self, topic: str) -> bytes | str:
        stamp = _now(self.behind_s.get(topic, 0.0)) if self.stamped else {"secs": 0, "nsecs": 0}
        message = {"header": {"seq": 1, "stamp": stamp, "frame_id": ""}}
        if topic == STATE:
            position = np.asarray(self.joints, np.float64)
            packed = cbor2.CBORTag(86, position.astype("<f8").tobytes()) if self.typed else position.tolist()
            message |= {"name": self.names, "position": packed, "velocity": [], "effort": []}
        else:
            data = self.images[topic]
            message |= {"format": "jpeg", "data": data if self.typed else list(data)}
        frame = {"op": "publish", "topic": topic, "msg": message}
        return json.dumps(frame) if self.text else cbor2.dumps(frame)


def _now(behind_s: float) -> dict[str, int]:
    nanoseconds = time.time_ns() - int(1e9 * behind_s)
    return {"secs": nanoseconds // 10**9, "nsecs": nanoseconds % 10**9}

"""A robot on ROS, through rosbridge: joint states and compressed images come in, joint positions are published. No JAX.

    with RosbridgeRobot("ws://192.168.0.3:9090") as robot:
        loop = ControlLoop(robot, manifest, infer, position_of=lambda seen: seen["joints"])

The settings are those of an AgileX Cobot Magic (ROS 1), left arm, front and left wrist camera. There the follower does
what the leader's topic says: while a policy publishes on it, the leader arms must be off or unplugged, or two
publishers fight over one arm.

Letters: J joints, the gripper among them. Positions are in the driver's units.
"""

import dataclasses
import io
import math
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal

import numpy as np

from cso_jax.runtime.manifest import Checked, Entry
from cso_jax.runtime.rosbridge_link import Message, NotThere, RosbridgeError, RosbridgeLink, bytes_of, package
from cso_jax.runtime.safety import well_formed

JOINTS = "joints"
"""The entry of an observation with the positions `[J]`."""

_JOINT_STATE, _IMAGE = "sensor_msgs/JointState", "sensor_msgs/CompressedImage"
_LARGEST_PIXELS = 4096 * 4096
_EIGHT_BIT = ("RGB", "L", "RGBA", "P", "CMYK", "YCbCr")


@dataclasses.dataclass(frozen=True)
class Camera(Checked):
    """An image entry of the observation, and the topic (sensor_msgs/CompressedImage, JPEG or PNG) that it comes from.

    `orientation` is how the picture is turned: "upright" leaves it as it comes, "flipped" has the bottom row first.
    """

    name: str
    topic: str
    orientation: Literal["upright", "rotated_180", "flipped"] = "upright"


@dataclasses.dataclass(frozen=True)
class RosbridgeSettings(Checked):
    """Topics and limits; by default Cobot Magic's. `image_size` is (H, W), to which pictures are resized.

    An observation is made of the newest message of each topic. Their stamps may be `sync_s` apart (a driver that does
    not stamp is not compared). A part older than `lost_s` is an error, which should be more than the control loop's
    own `stale_s`. `start_s` is how long the first whole observation may take. `grippers` are the joints that keep
    their last command where the others are held at their measured position: a hand stays closed around what it holds.
    """

    cameras: tuple[Camera, ...] = (
        Camera("front", "/camera_f/color/image_raw/compressed"),
        Camera("wrist", "/camera_l/color/image_raw/compressed"),
    )
    image_size: tuple[int, ...] = (128, 128)
    state_topic: str = "/puppet/joint_left"
    command_topic: str = "/master/joint_left"
    joints: tuple[str, ...] = tuple(f"joint{number}" for number in range(7))
    grippers: tuple[str, ...] = ("joint6",)
    rate_hz: float = 30.0
    start_s: float = 10.0
    lost_s: float = 1.0
    sync_s: float = 0.15
    largest_bytes: int = 8 * 2**20

    def _check(self) -> None:
        for name in ("rate_hz", "start_s", "lost_s", "sync_s", "largest_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"RosbridgeSettings.{name}: expected a number above 0, found {getattr(self, name)}")
        if len(self.image_size) != 2:
            raise ValueError(f"RosbridgeSettings.image_size: expected (H, W), found {self.image_size}")
        if not self.joints or len(set(self.joints)) < len(self.joints):
            raise ValueError(f"RosbridgeSettings.joints: expected different names, found {self.joints}")
        if not set(self.grippers) <= set(self.joints):
            raise ValueError(f"RosbridgeSettings.grippers: expected some of the joints, found {self.grippers}")
        for what, names in (("names", [entry.name for entry in self.entries]), ("topics", self.topics)):
            if len(set(names)) < len(names):
                raise ValueError(f"RosbridgeSettings: expected different {what}, found {', '.join(names)}")

    @property
    def topics(self) -> tuple[str, ...]:
        """Those that an observation is made of."""
        return (self.state_topic, *(camera.topic for camera in self.cameras))

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The observation as a manifest or a schema says it."""
        shape = (*self.image_size, 3)
        images = (Entry(camera.name, "image", shape, "uint8", camera.orientation) for camera in self.cameras)
        return (*images, Entry(JOINTS, "lowdim", (len(self.joints),), "float32"))


class RosbridgeRobot:
    """Satisfies `cso_jax.runtime.robot.Robot`. A lost connection is made again in the background; until then `observe`
    and `command` raise, `hold` and `stop` do not."""

    def __init__(self, url: str = "ws://127.0.0.1:9090", settings: RosbridgeSettings | None = None) -> None:
        """Connects, and waits for the first whole observation. Raises RosbridgeError."""
        self.settings = settings or RosbridgeSettings()
        self._pillow = package("PIL.Image")
        self._link = RosbridgeLink(
            url,
            {self.settings.state_topic: _JOINT_STATE} | {camera.topic: _IMAGE for camera in self.settings.cameras},
            {self.settings.command_topic: _JOINT_STATE},
            throttle_ms=int(500 / self.settings.rate_hz),  # at the full period every other message could be dropped
            largest_bytes=self.settings.largest_bytes,
            patience_s=self.settings.lost_s,
        )
        self._grippers = np.asarray([name in self.settings.grippers for name in self.settings.joints])
        self._parts: dict[str, Message] = {}
        self._seen: tuple[Mapping[str, np.ndarray], float] | None = None
        self._sending = threading.Lock()
        self._commanded: np.ndarray | None = None
        self._held = self._stopped = False
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    @property
    def rate_hz(self) -> float:
        """Commands per second that it wants."""
        return self.settings.rate_hz

    @property
    def malformed(self) -> int:
        """Frames that were not rosbridge's and were ignored."""
        return self._link.malformed

    def observe(self) -> tuple[Mapping[str, np.ndarray], float]:
        """Images uint8 `[H, W, 3]` RGB, "joints" float32 `[J]`, and when the oldest part arrived.

        Where the newest parts do not fit together the last ones that did are answered, with their own time. Raises
        RosbridgeError: no connection, a topic is silent for `lost_s`, joints are missing or not finite.
        """
        self._link.require()
        try:
            self._seen = self._whole()
        except NotThere:
            if self._seen is None or time.monotonic() - self._seen[1] > self.settings.lost_s:
                raise
        return self._seen

    def command(self, action: np.ndarray) -> None:
        """Publish positions `[J]`. Raises RosbridgeError: after `stop`, without a connection, for anything else."""
        if not well_formed(action, len(self.settings.joints)):
            found = " ".join(str(action).split())[:160]
            raise RosbridgeError(f"expected {len(self.settings.joints)} finite positions to command, found {found}")
        with self._sending:
            if self._stopped:
                raise RosbridgeError("the robot was stopped and takes no more commands: make another RosbridgeRobot")
            self._link.require()
            self._recent(self.settings.state_topic)  # over a dead cable commands would pile up, to come all at once
            self._held = False
            self._publish(np.asarray(action, np.float64))

    def hold(self) -> None:
        """Publish the measured position, once until the next command: following it would let the arm sink.

        Where it is not known nothing is sent, and the next call tries again.
        """
        with self._sending:
            if self._held:
                return
            try:
                position = self._positions(self._recent(self.settings.state_topic).value)
                if self._commanded is not None:
                    position[self._grippers] = self._commanded[self._grippers]
                self._publish(position)
            except RosbridgeError:  # the robot stays at its last command; `observe` says what is wrong
                return
            self._held = True

    def stop(self) -> None:
        """Hold, and refuse every later command. May be called from another thread."""
        self._stopped = True  # not under the lock: a command that waits for it must not be sent after this
        self.hold()

    def close(self) -> None:
        """Say goodbye. The robot stays at its last command."""
        self._link.close()

    def __enter__(self) -> "RosbridgeRobot":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self) -> None:
        """Until there is a whole observation. Raises RosbridgeError after `start_s`, at once for what cannot pass."""
        until = time.monotonic() + self.settings.start_s
        while True:
            try:
                self.observe()
                return
            except NotThere:
                if time.monotonic() > until:
                    raise
            time.sleep(0.01)

    def _publish(self, position: np.ndarray) -> None:
        # Without a stamp in its header a message gets the time of rosbridge, which is the robot's own.
        value = {"header": {"frame_id": ""}, "name": list(self.settings.joints), "position": position.tolist()}
        self._link.publish(self.settings.command_topic, value)
        self._commanded = position

    def _recent(self, topic: str) -> Message:
        """The newest message of a topic. Raises NotThere where there is none, or has been none for `lost_s`."""
        message = self._link.newest(topic)
        if message is None:
            todo = f"check its name and its node{self._link.said}"
            raise NotThere(f"{self._link.url}: nothing has come on {topic} since the connection was made; {todo}")
        if time.monotonic() - message.arrived > self.settings.lost_s:
            raise self._silent(topic, message)
        return message

    def _silent(self, topic: str, last: Message) -> NotThere:
        for_s = f"{time.monotonic() - last.arrived:.1f} s (RosbridgeSettings.lost_s is {self.settings.lost_s:g})"
        return NotThere(f"{self._link.url}: nothing has come on {topic} for {for_s}; check its node")

    def _whole(self) -> tuple[Mapping[str, np.ndarray], float]:
        """An observation of the newest parts. Raises NotThere where one is missing, silent, broken or of another time
        than the others; RosbridgeError for joints that cannot be used."""
        parts = {topic: self._recent(topic) for topic in self.settings.topics}
        position = self._positions(parts[self.settings.state_topic].value)
        if self._seen is not None and all(self._parts.get(topic) is part for topic, part in parts.items()):
            return self._seen
        self._compare_stamps(parts)
        seen = {camera.name: self._picture(camera, parts[camera.topic]) for camera in self.settings.cameras}
        seen[JOINTS] = position.astype(np.float32)
        self._parts = parts
        return seen, min(part.arrived for part in parts.values())

    def _compare_stamps(self, parts: Mapping[str, Message]) -> None:
        stamps = {topic: stamp for topic, part in parts.items() if (stamp := _stamp(part.value))}
        if not stamps:
            return
        first, last = min(stamps, key=stamps.__getitem__), max(stamps, key=stamps.__getitem__)
        apart_s = stamps[last] - stamps[first]
        if apart_s > self.settings.sync_s:
            if time.monotonic() - parts[first].arrived > self.settings.sync_s:  # it is not late, it has stopped
                raise self._silent(first, parts[first])
            limit = f"at most {self.settings.sync_s:g} s apart (RosbridgeSettings.sync_s)"
            raise NotThere(
                f"{self._link.url}: expected stamps {limit}, found {first} {apart_s:.2f} s behind {last}; check the "
                "load of the network and the clocks of the drivers"
            )

    def _positions(self, value: Mapping[str, Any]) -> np.ndarray:
        """The positions `[J]` float64 of a JointState, by name; one without names is taken in order."""
        joints, topic = self.settings.joints, self.settings.state_topic
        names = value.get("name")
        names = [str(name) for name in names] if isinstance(names, (list, tuple)) else []
        try:
            found = np.asarray(value.get("position"), np.float64)
        except (TypeError, ValueError):
            found = np.zeros(())
        if found.ndim != 1 or len(found) != len(names or joints):
            came = f"{len(names)} names and positions of shape {list(found.shape)}"
            raise RosbridgeError(
                f"{topic}: expected positions of {', '.join(joints)}, found {came}; check the driver, or set "
                "RosbridgeSettings.joints"
            )
        if names:
            missing = [joint for joint in joints if names.count(joint) != 1]
            if missing:
                raise RosbridgeError(
                    f"{topic}: expected each of {', '.join(joints)} once, found {', '.join(names)[:200]}; "
                    "set RosbridgeSettings.joints to the driver's names"
                )
            found = found[[names.index(joint) for joint in joints]]
        if not np.isfinite(found).all():
            wrong = ", ".join(joint for joint, value in zip(joints, found, strict=True) if not math.isfinite(value))
            raise RosbridgeError(f"{topic}: expected finite positions, found others for {wrong}; check the driver")
        return np.array(found)

    def _picture(self, camera: Camera, part: Message) -> np.ndarray:
        """A message's picture, uint8 `[H, W, 3]` RGB, resized and turned. Raises NotThere for a broken one."""
        height, width = self.settings.image_size
        try:
            with self._pillow.open(io.BytesIO(bytes_of(part.value.get("data"))), formats=("JPEG", "PNG")) as picture:
                if picture.width * picture.height > _LARGEST_PIXELS or picture.mode not in _EIGHT_BIT:
                    raise ValueError(f"{picture.width} x {picture.height} pixels of mode {picture.mode}")
                small = picture.convert("RGB").resize((width, height), self._pillow.Resampling.BILINEAR)
        except Exception as error:  # whatever a decoder says of whatever came
            why = " ".join(str(error).split())[:120]
            form = str(part.value.get("format"))[:40]
            raise NotThere(
                f"{self._link.url}: expected JPEG or PNG, 8 bits a colour, on {camera.topic}, found format {form!r} "
                f"that does not decode ({why}); check the topic"
            ) from None
        image = np.asarray(small)
        rows = image if camera.orientation == "upright" else image[::-1]
        return np.ascontiguousarray(rows[:, ::-1] if camera.orientation == "rotated_180" else rows)


def _stamp(value: Mapping[str, Any]) -> float | None:
    """The seconds of a message's header, as ROS 1 and 2 name them; None where the driver has set none."""
    header = value.get("header")
    stamp = header.get("stamp") if isinstance(header, dict) else None
    if not isinstance(stamp, dict):
        return None
    seconds, nanoseconds = stamp.get("secs", stamp.get("sec")), stamp.get("nsecs", stamp.get("nanosec"))
    if not isinstance(seconds, (int, float)) or not isinstance(nanoseconds, (int, float)):
        return None
    return seconds + 1e-9 * nanoseconds or None

"""Robots behind sockets as a benchmark: evaluation, R-SFT and SPO run on them through the same rollout loop.

A robot's program serves it (`runtime.robot_server`); each worker takes one of `config.env.robots` and keeps it. What
the robot sees and is told, and its tasks, stand in the file `config.env.schema`, which that program writes. There are
no scripted experts: demonstrations are files (`config.data = "stored"`).

Two things are not as in a simulator. An initial state is what whoever lays the scene makes of its name, unless the
schema says that it is reproducible. And an episode that the operator takes back, or whose connection is lost, is begun
again: `config.rollout.max_attempts` times.
"""

import contextlib
import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cso_jax.envs.protocol import (
    PROPRIO,
    ChunkResult,
    Environment,
    EnvSpec,
    InitState,
    JointLimits,
    RobotInterface,
    joint_frame,
)
from cso_jax.files import expanded
from cso_jax.rules import at_least_one, one_of
from cso_jax.runtime.requests import Refusal, read_refusal
from cso_jax.runtime.schema import FORMAT, VERSION, Schema, SchemaError
from cso_jax.runtime.wire import Bounds, WireError, pack, unpack

EXAMPLE = "configs/robot.py"
NEUTRAL = ("robots", "token_file", "answer_s", "connect_s")
SMOKE: dict[str, Any] = {}
SMOKE_TASKS: tuple[str, ...] = ()
EVALUATION_STATES: int | None = None


class RobotError(RuntimeError):
    """A robot that could not do what it was asked; the episode is begun again."""


class WrongRobot(RobotError):
    """The robot is not the one of the config; nothing is gained by another attempt."""

    fatal = True


def default_config() -> dict[str, Any]:
    """Two robots' worth of nothing: schema and addresses are the user's."""
    env = {
        "name": "robot",
        "tasks": ("all",),
        "obs": "pixels",  # or "state", for a robot without cameras
        "schema": "",  # the file that says what the robot is
        "robots": ("ws://127.0.0.1:9000",),  # one per worker
        "token_file": "",
        "answer_s": 900.0,  # for a scene to be laid, or a chunk to be executed
        "connect_s": 30.0,  # for a robot to be found: its program may be starting, or ending another connection
        "horizon": 400,  # actions per episode at most
        "chunks": "absolute",  # or "relative": what policies predict, angles from where the joints are
    }
    rollout = {"workers": 1, "slots": 1, "step_timeout_s": 1000.0, "start_timeout_s": 1000.0, "max_attempts": 5}
    return {"env": env, "rollout": rollout}


def problems(settings: Mapping[str, Any]) -> list[str]:
    """Everything wrong with the values of `config.env`, one line each."""
    found = one_of("env.obs", settings["obs"], ("pixels", "state")) + at_least_one("env.horizon", settings["horizon"])
    found += one_of("env.chunks", settings["chunks"], ("absolute", "relative"))
    if settings.get("history", 1) > 1:
        found.append("config.env.history is 1 for robots: they are looked at once per decision")
    if not settings["schema"]:
        found.append("config.env.schema is empty: it names the file that the robot's program wrote about it")
    if not settings["robots"] or not all(str(url).startswith(("ws://", "wss://")) for url in settings["robots"]):
        found.append(f"config.env.robots holds addresses such as ws://127.0.0.1:9000; got {settings['robots']}")
    if not found and _file(settings).is_file():
        try:
            images = bool(spec(settings).images)
        except ValueError as error:
            return [str(error)]
        if images != (settings["obs"] == "pixels"):
            found.append(f"config.env.obs is {settings['obs']}, but the schema has {'' if images else 'no '}cameras")
    return found


def needs_gl(settings: Mapping[str, Any]) -> bool:
    """Cameras are real, or drawn elsewhere."""
    return False


def require_files(settings: Mapping[str, Any]) -> dict[str, str]:
    """Raises FileNotFoundError where the schema is not there."""
    _schema(settings)
    return {}


def under_protocol(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """There are no protocols: raises ValueError."""
    raise ValueError(f"a robot has no evaluation protocol {name!r}, only its own")


def task_sets(settings: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """One set, of all tasks of the schema."""
    return {"all": tuple(task.name for task in _schema(settings).tasks)}


def sentence(settings: Mapping[str, Any], task: str) -> str:
    """What the schema says that the task asks for. Raises ValueError for another task."""
    for one in _schema(settings).tasks:
        if one.name == task:
            return one.sentence
    raise ValueError(f"{settings['schema']} has no task {task!r}")


def spec(settings: Mapping[str, Any]) -> EnvSpec:
    """The schema's shapes."""
    schema = _schema(settings)
    lowdim = {entry.name: entry.shape[0] for entry in schema.observation if entry.kind == "lowdim"}
    frame = None
    if settings["chunks"] == "relative":
        if schema.limits is None or lowdim.get(PROPRIO) != len(schema.commands.names):
            raise ValueError(
                "config.env.chunks=relative takes a robot whose schema has limits of joints and an entry "
                f"{PROPRIO!r} with their positions, one number per command; {settings['schema']} has not"
            )
        frame = joint_frame(robot_interface(settings))
    return EnvSpec(
        lowdim=lowdim,
        images={
            entry.name: (entry.shape[0], entry.shape[1], 3) for entry in schema.observation if entry.kind == "image"
        },
        action_dim=len(schema.commands.names),
        frame=frame,
    )


def robot_interface(settings: Mapping[str, Any]) -> RobotInterface:
    """The schema's."""
    schema = _schema(settings)
    commands, limits = schema.commands, schema.limits
    orientations = {entry.orientation for entry in schema.observation if entry.kind == "image"} or {"upright"}
    return RobotInterface(
        names=commands.names,
        low=commands.low,
        high=commands.high,
        units=commands.units,
        rate_hz=commands.rate_hz,
        scaled=True,
        orientation=min(orientations),
        limits=None if limits is None else JointLimits(**vars(limits)),
    )


def renderer(settings: Mapping[str, Any]) -> str:
    """Nothing here draws."""
    return "none"


def make_environments(settings: Mapping[str, Any], count: int) -> list[Environment]:
    """The environment of one worker, which takes the first robot that no other has. Raises RobotError for several."""
    if count != 1:
        raise RobotError(f"config.rollout.slots is {count}; a robot does one episode at a time: set it to 1")
    return [RemoteEnvironment(settings)]


class RemoteEnvironment:
    """One robot, from a connection that is made at the first reset and again where it was lost."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._schema = _schema(settings)
        self._link: RobotLink | None = None
        self._steps = 0

    def reset(self, init: InitState, *, record: bool = False) -> ChunkResult:
        """Have the scene of `init` laid. Raises RobotError, WrongRobot."""
        if self._link is None:
            self._link = _free_robot(self._settings, self._schema)
        self._steps = 0
        asked = {"task": init.task, "split": init.split, "index": init.index}
        return self._result({"reset": asked, "record": record})

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Have `actions` `[E, A]` executed; the horizon ends the episode as in a simulator. Raises RobotError."""
        if self._link is None:
            raise RobotError("no episode is under way: the connection to the robot was lost")
        left = self._settings["horizon"] - self._steps
        result = self._result({"actions": np.asarray(actions, np.float32)[:left]})
        self._steps += result.steps
        result.done = result.done or self._steps >= self._settings["horizon"]
        return result

    def close(self) -> None:
        """Let the robot go."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _result(self, request: dict[str, Any]) -> ChunkResult:
        assert self._link is not None
        try:
            answer = self._link.ask(request)
        except LinkLost:
            self.close()
            raise
        seen = answer["observation"]
        for entry in self._schema.observation:
            value = seen.get(entry.name) if isinstance(seen, dict) else None
            if not isinstance(value, np.ndarray) or value.shape != entry.shape or value.dtype != entry.dtype:
                found = f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
                raise WrongRobot(
                    f"{self._link.url} shows {entry.name} as {found}, its schema says {entry.dtype}{list(entry.shape)}"
                )
        observation = {entry.name: np.array(seen[entry.name]) for entry in self._schema.observation}
        return ChunkResult(
            observation, bool(answer["success"]), bool(answer["done"]), int(answer["steps"]),
            float(answer["physics_s"]), float(answer["render_s"]), [np.array(frame) for frame in answer["frames"]],
            tuple(bool(stage) for stage in answer["stages"]),
        )  # fmt: skip


def _free_robot(settings: Mapping[str, Any], schema: Schema) -> "RobotLink":
    token = expanded(settings["token_file"]).read_text("utf-8").strip() if settings["token_file"] else ""
    until = time.monotonic() + settings["connect_s"]
    while True:
        reasons = []
        for url in settings["robots"]:
            try:
                return RobotLink(url, token, schema, settings["answer_s"])
            except LinkLost as error:
                reasons.append(str(error))
        if time.monotonic() >= until:
            raise RobotError(f"no robot is free: {'; '.join(reasons)}. config.rollout.workers is how many are in use")
        time.sleep(0.2)


class LinkLost(RobotError):
    """No connection to a robot, or no longer."""


class RobotLink:
    """A connection to a robot's program, as `runtime.schema` describes it."""

    def __init__(self, url: str, token: str, schema: Schema, answer_s: float) -> None:
        """Raises LinkLost where nobody answers or the robot has another client, WrongRobot for another robot."""
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        self.url, self._answer_s = url, answer_s
        self._open = contextlib.ExitStack()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            opening = connect(
                url, additional_headers=headers, compression=None, max_size=_LARGEST, open_timeout=10.0, proxy=None
            )
            self._socket = self._open.enter_context(opening)
            hello = unpack(self._socket.recv(10.0), bounds=_BOUNDS)
        except (OSError, TimeoutError, WebSocketException, WireError) as error:
            raise LinkLost(f"{url} ({_why(error)})") from None
        spoken = (hello.get("protocol"), hello.get("protocol_version")) if isinstance(hello, dict) else None
        if spoken != (FORMAT, VERSION):
            self.close()
            raise WrongRobot(f"{url} speaks {spoken}, expected {(FORMAT, VERSION)}: the same version on both sides")
        try:
            found = Schema.from_plain(hello.get("schema"))
        except SchemaError as error:
            self.close()
            raise WrongRobot(f"{url}: {error}") from None
        if found != schema:
            self.close()
            raise WrongRobot(
                f"{url} is {found.name!r} with another schema than config.env.schema ({schema.name!r}, in "
                f"{_difference(found, schema)}): fetch its /schema, or connect the right robot"
            )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request. Raises LinkLost, RobotError in the robot's words."""
        from websockets.exceptions import WebSocketException

        try:
            self._socket.send(pack(request))
            frame = self._socket.recv(self._answer_s)
            answer = read_refusal(frame) if isinstance(frame, str) else unpack(frame, bounds=_BOUNDS)
        except (OSError, TimeoutError, WebSocketException, WireError) as error:
            raise LinkLost(f"{self.url}: the robot does not answer ({_why(error)})") from None
        if isinstance(answer, Refusal):
            raise RobotError(f"{self.url}: {answer}")
        if not isinstance(answer, dict) or not answer.keys() >= _ANSWER:
            raise LinkLost(f"{self.url}: the answer is not one of this protocol")
        return answer

    def close(self) -> None:
        """Say goodbye."""
        self._open.close()


_ANSWER = {"observation", "success", "done", "steps", "physics_s", "render_s", "frames", "stages"}
_LARGEST = 64 * 2**20
_BOUNDS = Bounds(bytes=_LARGEST, depth=16, items=10**5)


def _difference(found: Schema, wanted: Schema) -> str:
    fields = ("observation", "commands", "tasks", "limits", "reproducible", "name")
    return next(name for name in fields if getattr(found, name) != getattr(wanted, name))


def _why(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _file(settings: Mapping[str, Any]) -> Path:
    return expanded(settings["schema"])


def _schema(settings: Mapping[str, Any]) -> Schema:
    if not settings["schema"]:
        raise FileNotFoundError("config.env.schema is empty: it names the file that the robot's program wrote about it")
    path = _file(settings)
    changed = path.stat().st_mtime_ns if path.is_file() else 0
    return _read(path, changed)


@functools.lru_cache(maxsize=16)
def _read(path: Path, changed: int) -> Schema:
    return Schema.read(path)

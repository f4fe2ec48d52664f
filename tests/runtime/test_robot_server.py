"""A robot for training over a real socket: the same episode as without it, and every refusal keeps the connection."""

import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from support import served
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from cso_jax import envs
from cso_jax.envs import robot as robots
from cso_jax.envs.protocol import EvalInit, TrainInit
from cso_jax.runtime.driven import DrivenRobot
from cso_jax.runtime.manifest import Entry, Limits, Task
from cso_jax.runtime.operator import BUTTONS, Aborted, Operator
from cso_jax.runtime.robot_server import RobotServer
from cso_jax.runtime.safety import EmergencyStop
from cso_jax.runtime.schema import Commands, Schema, SchemaError
from cso_jax.runtime.simulated_robot import schema_of
from cso_jax.runtime.wire import pack, unpack

SETTINGS = envs.benchmark("fake").default_config()["env"]


def serving(environment=None, schema=None, **options):
    if environment is None:
        (environment,) = envs.make_environments(SETTINGS, 1)
    return RobotServer(schema or schema_of(SETTINGS), environment, port=0, **options)


def settings_for(tmp_path, *servers, schema=None, **changes):
    """`config.env` of a robot that these servers are."""
    file = tmp_path / "robot.json"
    file.write_text((schema or schema_of(SETTINGS)).to_json())
    addresses = tuple(f"ws://127.0.0.1:{server.port}" for server in servers)
    values = robots.default_config()["env"] | {
        "obs": "state",
        "schema": str(file),
        "robots": addresses,
        "answer_s": 20.0,
        "connect_s": 0.0,
    }
    return values | changes


def towards(observation):
    way = observation["state"][2:] - observation["state"][:2]
    return np.tile(np.clip(way / 0.06, -1, 1), (4, 1)).astype(np.float32)


def test_an_episode_over_the_socket_is_the_episode(tmp_path):
    (direct,) = envs.make_environments(SETTINGS, 1)
    with serving() as server:
        remote = robots.RemoteEnvironment(settings_for(tmp_path, server, horizon=60))
        for init in (EvalInit("left", 3), TrainInit("up", 5)):
            here, there = direct.reset(init, record=True), remote.reset(init, record=True)
            while not here.done:
                np.testing.assert_array_equal(here.observation["state"], there.observation["state"])
                assert here.observation.keys() == there.observation.keys()
                assert (here.success, here.done, here.steps) == (there.success, there.done, there.steps)
                assert len(here.frames) == len(there.frames) and all(map(np.array_equal, here.frames, there.frames))
                actions = towards(here.observation)
                here, there = direct.step_chunk(actions), remote.step_chunk(actions)
            assert here.success and there.success and there.done
        remote.close()


def test_the_horizon_of_the_config_ends_an_episode(tmp_path):
    with serving() as server:
        remote = robots.RemoteEnvironment(settings_for(tmp_path, server, horizon=6))
        remote.reset(EvalInit("left", 0))
        still = np.zeros((4, 2), np.float32)
        assert not remote.step_chunk(still).done
        last = remote.step_chunk(still)
        assert (last.steps, last.done, last.success) == (2, True, False)
        remote.close()


def test_facts_come_from_the_schema(tmp_path):
    with serving() as server:
        settings = settings_for(tmp_path, server)
    assert envs.problems(settings) == [] and envs.task_names(settings) == ("left", "right", "up")
    assert envs.sentence(settings, "up") == "go up"
    assert envs.spec(settings) == envs.spec(SETTINGS)
    interface = envs.robot_interface(settings)
    assert interface.names == ("x", "y") and interface.scaled and interface.low == (-1.0, -1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": ""}, "config.env.schema is empty"),
        ({"robots": ("http://here",)}, "config.env.robots holds addresses"),
        ({"obs": "pixels"}, "the schema has no cameras"),
        ({"horizon": 0}, "env.horizon"),
        ({"history": 2}, "config.env.history is 1"),
        ({"chunks": "near"}, "env.chunks"),
        ({"chunks": "relative"}, "an entry 'proprio' with their positions"),
    ],
)
def test_what_is_wrong_with_the_settings(tmp_path, changes, message):
    with serving() as server:
        (found,) = envs.problems(settings_for(tmp_path, server) | changes)
    assert message in found


def test_a_missing_and_a_broken_schema_are_named(tmp_path):
    with serving() as server:
        settings = settings_for(tmp_path, server)
    (tmp_path / "robot.json").write_text("{}")
    assert "expected a robot's schema" in envs.problems(settings)[0]
    (tmp_path / "robot.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"robot.json, the robot's schema"):
        envs.require_files(settings)


def test_a_second_training_computer_takes_the_next_robot_or_none(tmp_path):
    with serving() as one, serving() as other:
        settings = settings_for(tmp_path, one, other)
        first, second, third = (robots.RemoteEnvironment(settings) for _ in range(3))
        for environment in (first, second):
            environment.reset(EvalInit("left", 0))
        with pytest.raises(robots.RobotError, match=r"no robot is free: .*409"):
            third.reset(EvalInit("left", 0))
        first.close()
        settings["connect_s"] = 10.0  # until the robot's program has noticed
        third.reset(EvalInit("left", 0))
        second.close()
        third.close()


def test_another_robot_is_not_driven(tmp_path):
    with serving() as server:
        settings = settings_for(tmp_path, server, schema=schema_of(SETTINGS | {"tasks": ("left",)}))
        with pytest.raises(robots.WrongRobot, match=r"another schema than config.env.schema .* in tasks") as error:
            robots.RemoteEnvironment(settings).reset(EvalInit("left", 0))
    assert error.value.fatal


def test_a_lost_connection_fails_the_episode_and_the_next_one_connects_again(tmp_path):
    with serving() as server:
        settings = settings_for(tmp_path, server)
        remote = robots.RemoteEnvironment(settings)
        remote.reset(EvalInit("left", 0))
        remote._link._socket.socket.close()  # the cable
        with pytest.raises(robots.RobotError, match="does not answer"):
            remote.step_chunk(np.zeros((2, 2), np.float32))
        with pytest.raises(robots.RobotError, match="no episode is under way"):
            remote.step_chunk(np.zeros((2, 2), np.float32))
        settings["connect_s"] = 10.0  # until the robot's program has noticed
        assert remote.reset(EvalInit("left", 1)).steps == 0
        assert remote.step_chunk(np.zeros((2, 2), np.float32)).steps == 2
        remote.close()
    with pytest.raises(robots.RobotError, match="no robot is free"):
        robots.RemoteEnvironment(settings | {"connect_s": 0.3}).reset(EvalInit("left", 0))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"actions": np.zeros((2, 3), np.float32)}, "(shape): actions: expected float32 [E, 2], found float32[2, 3]"),
        ({"actions": np.zeros((2, 2))}, "refused (shape): actions: expected float32 [E, 2], found float64[2, 2]"),
        ({"actions": np.zeros((0, 2), np.float32)}, "refused (shape)"),
        ({"actions": "up"}, "found str"),
        ({"actions": np.full((1, 2), np.nan, np.float32)}, "refused (not_finite)"),
        ({"actions": np.zeros((1, 2), np.float32)}, "refused (robot): RuntimeError: no episode is under way"),
        ({"reset": {"task": "dance", "split": "eval", "index": 0}, "record": False}, "(task): expected one of left"),
        ({"reset": {"task": "left", "split": "test", "index": 0}, "record": False}, "refused (malformed): reset"),
        ({"reset": {"task": "left"}, "record": False}, "refused (malformed): reset"),
        ({"jump": 1}, "refused (malformed): expected {reset, record} or {actions}"),
        (b"\xc1", "refused (malformed)"),
        ("hello", "refused (malformed)"),
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_and_the_next_one_answered(request_, message):
    with serving() as server, connect(f"ws://127.0.0.1:{server.port}") as socket:
        hello = unpack(socket.recv(5))
        assert hello["protocol"] == "cso_jax.robot" and Schema.from_plain(hello["schema"]) == server.schema
        socket.send(request_ if isinstance(request_, bytes | str) else pack(request_))
        refused = socket.recv(5)
        assert isinstance(refused, str) and message in refused
        socket.send(pack({"reset": {"task": "left", "split": "eval", "index": 0}, "record": False}))
        assert unpack(socket.recv(5))["steps"] == 0


def test_a_token_is_asked_for(tmp_path):
    with serving(token="secret") as server:
        settings = settings_for(tmp_path, server)
        with pytest.raises(robots.RobotError, match="401"):
            robots.RemoteEnvironment(settings).reset(EvalInit("left", 0))
        (tmp_path / "token").write_text("secret\n")
        remote = robots.RemoteEnvironment(settings | {"token_file": str(tmp_path / "token")})
        assert remote.reset(EvalInit("left", 0)).steps == 0
        remote.close()
    with pytest.raises(ValueError, match="there is no token"):
        RobotServer(schema_of(SETTINGS), None, host="0.0.0.0")


def test_a_web_page_may_not_drive_it_and_the_operators_page_needs_its_key():
    operator = Operator()
    with serving(operator=operator) as server:
        base = f"http://127.0.0.1:{server.port}"
        with pytest.raises(InvalidStatus, match="403"):
            connect(f"ws://127.0.0.1:{server.port}", origin="http://elsewhere").__enter__()
        operator.announce("lay the <scene>")
        page = urllib.request.urlopen(f"{base}/operator/{operator.key}", timeout=5).read().decode()
        assert "lay the &lt;scene&gt;" in page and all(button in page for button in BUTTONS)
        urllib.request.urlopen(f"{base}/operator/{operator.key}/success", timeout=5)
        assert operator.verdict() is True
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{base}/operator/guessed/failure", timeout=5)
        assert operator.verdict() is True
        assert urllib.request.urlopen(f"{base}/healthz", timeout=5).read() == b"OK\n"
        assert b'"cso_jax.robot"' in urllib.request.urlopen(f"{base}/schema", timeout=5).read()


# ----------------------------------------------------------------------------------------------------- a robot's driver

ARM = Schema(
    name="arm", observation=(Entry("joints", "lowdim", (7,), "float32"),),
    commands=Commands(
        (*(f"joint{i}" for i in range(6)), "gripper"), (-2.0,) * 6 + (0.0,), (2.0,) * 6 + (1.0,), "rad", 200.0
    ),
    tasks=(Task("lift", "lift it"),),
    limits=Limits(tuple(f"joint{i}" for i in range(6)), (-1.5,) * 6, (1.5,) * 6, (100.0,) * 6, (0.1,) * 6),
    reproducible=False,
)  # fmt: skip


def driven(operator, **options):
    robot = served.FakeRobot(rate_hz=200.0)
    position = lambda seen: np.zeros(7)  # noqa: E731
    return robot, DrivenRobot(robot, ARM, operator, position_of=position, ready_s=5.0, **options)


def soon(press, *buttons):
    """Press the buttons from another thread, in a moment."""
    threading.Timer(0.05, lambda: [press(button) for button in buttons]).start()


def test_an_operator_begins_and_ends_an_episode():
    operator = Operator()
    robot, environment = driven(operator)
    soon(operator.press, "ready")
    first = environment.reset(TrainInit("lift", 4))
    assert first.observation["joints"].shape == (7,) and not first.done
    assert operator.notice == "running: lift it (train:lift:4)"
    result = environment.step_chunk(np.ones((3, 7), np.float32))
    assert (result.steps, result.success, result.done) == (3, False, False)
    sent = np.array([action for _, action in robot.commands])
    np.testing.assert_allclose(sent[:, 0], [0.1, 0.2, 0.3], atol=1e-6)  # 2 rad are asked for, 0.1 allowed per step
    np.testing.assert_allclose(sent[:, 6], 1.0)
    operator.press("success")
    result = environment.step_chunk(np.zeros((3, 7), np.float32))
    assert (result.steps, result.success, result.done) == (1, True, True)


def test_a_failure_an_abort_and_a_pause():
    operator = Operator()
    robot, environment = driven(operator)
    soon(operator.press, "ready")
    environment.reset(TrainInit("lift", 0))
    operator.press("failure")
    result = environment.step_chunk(np.zeros((3, 7), np.float32))
    assert (result.success, result.done) == (False, True)
    soon(operator.press, "ready")
    environment.reset(TrainInit("lift", 0))
    operator.press("pause")
    soon(operator.press, "resume")
    before = len(robot.holds)
    assert environment.step_chunk(np.zeros((2, 7), np.float32)).steps == 2
    assert len(robot.holds) > before  # it held meanwhile
    operator.press("abort")
    with pytest.raises(Aborted, match="begun again"):
        environment.step_chunk(np.zeros((2, 7), np.float32))


@pytest.mark.parametrize("paused", [False, True])
def test_an_emergency_stops_the_robot_in_a_pause_too(paused):
    operator, pressed = Operator(), threading.Event()
    robot, environment = driven(operator, emergency=pressed.is_set)
    soon(operator.press, "ready")
    environment.reset(TrainInit("lift", 0))
    if paused:
        operator.press("pause")
    pressed.set()
    with pytest.raises(EmergencyStop):
        environment.step_chunk(np.zeros((2, 7), np.float32))
    assert robot.stops == 1 and robot.commands == []


def test_nobody_at_the_button_is_a_timeout():
    with pytest.raises(TimeoutError, match="nobody pressed ready"):
        DrivenRobot(served.FakeRobot(), ARM, Operator(), position_of=lambda seen: np.zeros(7), ready_s=0.01).reset(
            TrainInit("lift", 0)
        )


def test_a_function_may_judge():
    operator = Operator()
    _, environment = driven(operator, judge=lambda seen, task: task == "lift")
    soon(operator.press, "ready")
    environment.reset(TrainInit("lift", 0))
    assert environment.step_chunk(np.zeros((2, 7), np.float32)).success


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "expected version 1, found 2"),
        ({"format": "other"}, "expected a robot's schema"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"tasks": []}, "at least one"),
        ({"reproducible": "yes"}, "true or false"),
    ],
)
def test_a_schema_is_strict(change, message):
    assert Schema.from_plain(ARM.to_plain()) == ARM
    with pytest.raises(SchemaError, match=message):
        Schema.from_plain(ARM.to_plain() | change)

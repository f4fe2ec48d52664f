"""A robot on rosbridge, against a server that speaks as one: what arrives, what is sent, and how each fault is told."""

import contextlib
import random
import re
import sys
import threading
import time

import cbor2
import numpy as np
import pytest
from support import served
from support.rosbridge import COMMAND, FRONT, STATE, WRIST, FakeRosbridge, encoded, picture

from cso_jax.envs.protocol import TrainInit
from cso_jax.runtime import rosbridge_link
from cso_jax.runtime.control import ControlLoop, Settings
from cso_jax.runtime.driven import DrivenRobot
from cso_jax.runtime.manifest import Action, Entry, Limits, Task
from cso_jax.runtime.operator import Operator
from cso_jax.runtime.rosbridge import Camera, RosbridgeError, RosbridgeRobot, RosbridgeSettings, _stamp
from cso_jax.runtime.rosbridge_link import NotThere, bytes_of, read_frame
from cso_jax.runtime.schema import Commands, Schema

JOINTS = tuple(f"joint{number}" for number in range(7))


def settings(**changes):
    return RosbridgeSettings(**{"image_size": (24, 32), "rate_hz": 50.0, "lost_s": 5.0, **changes})


@pytest.fixture
def ros():
    with FakeRosbridge() as server:
        yield server


@pytest.fixture
def robot(ros):
    with RosbridgeRobot(ros.url, settings()) as robot:
        yield robot


@pytest.fixture
def impatient(ros):
    """A robot to which a topic is lost soon."""
    with RosbridgeRobot(ros.url, settings(lost_s=0.6)) as robot:
        yield robot


def until(holds, seconds=5.0):
    """Wait for what another thread does."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def failing(robot, seconds=5.0):
    """The error of `observe`, which may come a moment later."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            robot.observe()
        except RosbridgeError as error:
            assert "\n" not in str(error)
            return str(error)
        time.sleep(0.005)
    raise AssertionError("no error")


def fine(robot):
    try:
        return robot.observe()
    except RosbridgeError:
        return None


# --------------------------------------------------------------------------------------------------- what is observed


def test_an_observation_is_the_newest_of_every_topic(ros, robot):
    seen, made = robot.observe()
    assert 0 <= time.monotonic() - made < 5.0
    assert {entry.name: (entry.shape, entry.dtype) for entry in robot.settings.entries} == {
        name: (value.shape, str(value.dtype)) for name, value in seen.items()
    }
    np.testing.assert_allclose(seen["joints"], np.arange(7) / 10, atol=1e-6)
    for name, top, bottom in (("front", (250, 20, 30), (20, 40, 250)), ("wrist", (10, 200, 20), (240, 240, 10))):
        np.testing.assert_allclose(seen[name][3:9, 3:-3].mean((0, 1)), top, atol=6)  # RGB, the upper half above
        np.testing.assert_allclose(seen[name][-9:-3, 3:-3].mean((0, 1)), bottom, atol=6)
    ros.joints = np.full(7, 0.5)
    until(lambda: robot.observe()[0]["joints"][0] == 0.5)


def test_what_is_subscribed_and_advertised(ros, robot):
    assert [(one["topic"], one["type"]) for one in ros.asked("subscribe")] == [
        (STATE, "sensor_msgs/JointState"),
        (FRONT, "sensor_msgs/CompressedImage"),
        (WRIST, "sensor_msgs/CompressedImage"),
    ]
    assert {one["throttle_rate"] for one in ros.asked("subscribe")} == {10}
    assert [(one["topic"], one["type"]) for one in ros.asked("advertise")] == [(COMMAND, "sensor_msgs/JointState")]
    robot.close()
    until(lambda: len(ros.asked("unsubscribe")) == 3 and len(ros.asked("unadvertise")) == 1)


@pytest.mark.parametrize("how", ["lists", "unstamped", "without names", "other order"])
def test_other_ways_to_say_the_same(ros, how):
    ros.typed, ros.stamped = how != "lists", how != "unstamped"
    if how == "without names":
        ros.names = []
    if how == "other order":
        ros.names, ros.joints = ["other", *ros.names[::-1]], np.array([9.0, *np.arange(7)[::-1] / 10])
    with RosbridgeRobot(ros.url, settings()) as robot:
        seen, _ = robot.observe()
    np.testing.assert_allclose(seen["joints"], np.arange(7) / 10, atol=1e-6)
    assert seen["front"][5, 5, 0] > 240


def test_pictures_are_turned_as_the_policy_knows_them(ros):
    ros.images[FRONT] = encoded(np.concatenate([picture((250, 0, 0), (0, 250, 0)), picture((0, 0, 250), (0, 0, 0))], 1))
    seen = {}
    for orientation in ("upright", "flipped", "rotated_180"):
        cameras = (Camera("front", FRONT, orientation),)
        with RosbridgeRobot(ros.url, settings(cameras=cameras)) as robot:
            seen[orientation] = robot.observe()[0]["front"]
        assert robot.settings.entries[0].orientation == orientation
    np.testing.assert_array_equal(seen["flipped"], seen["upright"][::-1])
    np.testing.assert_array_equal(seen["rotated_180"], seen["upright"][::-1, ::-1])


@pytest.mark.parametrize(("tag", "kind"), [(64, "u1"), (69, "<u2"), (78, "<i4"), (85, "<f4"), (86, "<f8"), (82, ">f8")])
def test_typed_arrays_and_plain_lists_are_read(tag, kind):
    values = np.array([0, 1, 2, 200]).astype(kind)
    frame = {"op": "publish", "msg": {"typed": cbor2.CBORTag(tag, values.tobytes()), "plain": values.tolist()}}
    found = read_frame(cbor2.dumps(frame), cbor2.loads)["msg"]
    np.testing.assert_array_equal(found["typed"], values)
    np.testing.assert_array_equal(found["typed"], found["plain"])


def test_bytes_come_in_four_ways():
    typed = read_frame(cbor2.dumps({"op": "publish", "data": cbor2.CBORTag(64, b"\xff\x00")}), cbor2.loads)["data"]
    assert {bytes_of(b"\xff\x00"), bytes_of([255, 0]), bytes_of("/wA="), bytes_of(typed)} == {b"\xff\x00"}


# -------------------------------------------------------------------------------------------------- what is commanded


def test_a_command_has_names_positions_and_a_stamp(ros, robot):
    robot.command(np.arange(7, dtype=np.float32) / 8)
    until(lambda: ros.commands)
    (sent,) = ros.commands
    assert sent["topic"] == COMMAND and sent["msg"]["name"] == list(JOINTS)
    assert sent["msg"]["position"] == [number / 8 for number in range(7)]
    assert abs(sent["msg"]["header"]["stamp"]["secs"] - time.time()) < 3
    assert not {"velocity", "effort"} & sent["msg"].keys()
    for wrong in (np.zeros(6), np.full(7, np.nan), None):
        with pytest.raises(RosbridgeError, match="expected 7 finite positions to command"):
            robot.command(wrong)
    assert len(ros.commands) == 1


def test_hold_commands_the_measured_position_once_and_keeps_the_gripper(ros, robot):
    ros.follows = False  # the arm sags while it is held
    robot.command(np.full(7, 0.01))
    for step in range(5):
        robot.hold()
        ros.joints = ros.joints - 0.01 * step
        time.sleep(0.02)
    until(lambda: len(ros.commands) == 2)
    np.testing.assert_allclose(ros.commands[1]["msg"]["position"], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.01])
    robot.command(np.full(7, 0.3))
    robot.hold()
    until(lambda: len(ros.commands) == 4)
    assert ros.commands[3]["msg"]["position"][5] == pytest.approx(0.4)


def test_hold_says_nothing_where_the_position_is_not_known(ros, robot):
    ros.joints = np.full(7, np.nan)
    assert "expected finite positions" in failing(robot)
    robot.hold()
    time.sleep(0.05)
    assert ros.commands == []
    ros.joints = np.ones(7)
    until(lambda: fine(robot))
    robot.hold()
    until(lambda: len(ros.commands) == 1)


def test_stop_holds_and_refuses(ros, robot):
    robot.command(np.full(7, 0.2))
    threads = [threading.Thread(target=robot.stop) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(RosbridgeError, match="the robot was stopped and takes no more commands"):
        robot.command(np.zeros(7))
    robot.hold()
    time.sleep(0.05)
    assert len(ros.commands) == 2
    robot.observe()


# ------------------------------------------------------------------------------------------------------- whole programs


def _manifest():
    return served.manifest(
        chunk_length=8, horizon=4, observation=settings().entries,
        action=Action(7, 8, 4, JOINTS, (-3.0,) * 7, (3.0,) * 7, "rad", 50.0),
        limits=Limits(JOINTS, None, None, None, (0.05,) * 7),
    )  # fmt: skip


def test_a_control_loop_runs_on_it(ros, robot):
    asked = []

    def infer(seen):
        asked.append(seen)
        return np.tile(seen["joints"] + 0.02, (8, 1))

    loop = ControlLoop(
        robot,
        _manifest(),
        infer,
        position_of=lambda seen: seen["joints"],
        settings=Settings(stale_s=5.0, watchdog_s=60.0),
    )
    report = loop.run(seconds=0.8)
    assert report.commands > 5 and report.failures == 0 and len(asked) > 2
    assert report.requests - len(asked) in (0, 1)  # the last one may come when the planner is closed already
    assert asked[0].keys() == {"front", "wrist", "joints"}
    until(lambda: len(ros.commands) >= report.commands)
    first = np.array([sent["msg"]["position"] for sent in ros.commands])[:, 0]
    assert np.abs(np.diff(first)).max() < 0.051 and first[-1] > 0.02


@pytest.mark.parametrize("stamped", [True, False])
def test_a_stale_camera_is_seen_as_stale_and_then_as_lost(ros, stamped):
    ros.stamped = stamped
    with RosbridgeRobot(ros.url, settings(lost_s=0.6)) as robot:
        _until_a_camera_is_lost(ros, robot)


def _until_a_camera_is_lost(ros, robot):
    ros.silent = {WRIST}
    loop = ControlLoop(
        robot, _manifest(), lambda seen: np.tile(seen["joints"], (8, 1)), position_of=lambda seen: seen["joints"],
        settings=Settings(stale_s=0.1, watchdog_s=60.0),
    )  # fmt: skip
    with pytest.raises(
        RosbridgeError, match=rf"nothing has come on {WRIST} for 0\.\d s .*lost_s is 0.6.*check its node"
    ):
        loop.run(seconds=3)
    assert loop.report.stale_observations > 2
    with pytest.raises(RosbridgeError, match="was stopped"):
        robot.command(np.zeros(7))


def test_training_drives_it(ros, robot):
    schema = Schema(
        name="arm", observation=robot.settings.entries, commands=Commands(JOINTS, (-1.0,) * 7, (1.0,) * 7, "rad", 50.0),
        tasks=(Task("lift", "lift it"),), limits=Limits(JOINTS, None, None, None, (0.1,) * 7), reproducible=False,
    )  # fmt: skip
    operator = Operator()
    arm = DrivenRobot(robot, schema, operator, position_of=lambda seen: seen["joints"], ready_s=5.0)
    threading.Timer(0.02, operator.press, ("ready",)).start()
    first = arm.reset(TrainInit("lift", 0))
    assert first.observation["front"].shape == (24, 32, 3) and first.observation["joints"].dtype == np.float32
    result = arm.step_chunk(np.zeros((8, 7), np.float32))
    assert (result.steps, result.done) == (8, False)
    until(lambda: len(ros.commands) == 8)
    np.testing.assert_allclose(ros.commands[-1]["msg"]["position"], 0.0, atol=1e-6)  # 0.6 at most, by 0.1 each
    until(lambda: np.abs(robot.observe()[0]["joints"]).max() < 1e-6)
    operator.press("success")
    assert arm.step_chunk(np.zeros((2, 7), np.float32)).success


# --------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("joints", "names", "message"),
    [
        (np.array([0, 1, np.nan, 3, 4, np.inf, 6]), JOINTS, r"joint_left: expected finite .* joint2, joint5; check"),
        (np.zeros(6), JOINTS, r"found 7 names and positions of shape \[6\]; check the driver"),
        (np.zeros(6), JOINTS[:6], r"expected each of joint0, .*joint6 once, found joint0, .*joint5; set"),
        (np.zeros(6), (), r"found 0 names and positions of shape \[6\]"),
        (np.zeros(7), [f"j{number}" for number in range(7)], r"found j0, .* set RosbridgeSettings.joints to the dr"),
        (np.zeros(8), [*JOINTS, "joint3"], r"joint6 once, found"),
        (np.zeros((7, 1)), JOINTS, r"found 7 names and positions of shape \[7, 1\]"),
    ],
)  # fmt: skip
def test_joints_that_cannot_be_used_are_told_at_once(ros, joints, names, message):
    ros.typed, ros.names, ros.joints = joints.ndim == 1, list(names), joints
    with pytest.raises(RosbridgeError, match=message) as error:
        RosbridgeRobot(ros.url, settings())
    assert not isinstance(error.value, NotThere)  # which is waited for


def test_a_topic_that_never_comes_is_named(ros):
    ros.silent = {FRONT}
    ros.say('{"op": "status", "level": "error", "msg": "subscribe: topic unknown"}')
    began = time.monotonic()
    with pytest.raises(
        NotThere, match=rf"nothing has come on {FRONT} since .*rosbridge says: subscribe: topic unknown"
    ):
        RosbridgeRobot(ros.url, settings(start_s=0.3))
    assert 0.3 < time.monotonic() - began < 3


def test_nobody_there_is_told():
    with FakeRosbridge() as gone:
        url = gone.url
    with pytest.raises(NotThere, match=r"no rosbridge \(.*refused.*\): start rosbridge_server, or check host and port"):
        RosbridgeRobot(url, settings(start_s=0.2))
    with pytest.raises(RosbridgeError, match=r"as ws://HOST:9090, found '127.0.0.1'"):
        RosbridgeRobot("127.0.0.1")


def test_malformed_frames_are_counted_and_warned_about_once(ros, robot, capsys):
    frames = [b"\xff\xff", b"", "no JSON", "[1]", cbor2.dumps([1, 2]), cbor2.dumps({"op": 3})]
    frames += [cbor2.dumps({"op": "publish", "topic": STATE, "msg": 5})]
    frames += [cbor2.dumps({"op": "publish", "topic": STATE, "msg": {"position": cbor2.CBORTag(86, b"123")}})]
    for frame in frames:
        ros.say(frame)
    until(lambda: robot.malformed == len(frames))
    ros.say(cbor2.dumps({"op": "publish", "topic": "/elsewhere", "msg": {}}))
    ros.say('{"op": "service_response"}')
    ros.joints = np.ones(7)
    until(lambda: robot.observe()[0]["joints"][0] == 1)
    assert robot.malformed == len(frames) and capsys.readouterr().err.count("a frame was ignored") == 1


def test_any_bytes_at_all_are_read_or_refused():
    draws = random.Random(0)
    good = cbor2.dumps(
        {"op": "publish", "topic": STATE, "msg": {"position": cbor2.CBORTag(86, bytes(56)), "n": [1, "a"]}}
    )
    for _ in range(3000):
        frame = bytearray(good)
        for _ in range(draws.randint(1, 6)):
            frame[draws.randrange(len(frame))] = draws.randrange(256)
        with contextlib.suppress(Exception):  # those the thread survives
            assert isinstance(read_frame(bytes(frame[: draws.randint(1, len(frame))]), cbor2.loads)["op"], str)


def test_a_message_above_the_limit_ends_the_connection_and_is_named(ros):
    with RosbridgeRobot(ros.url, settings(largest_bytes=100_000)) as robot:
        ros.say(bytes(200_000))
        assert "at most 100000 bytes (RosbridgeSettings.largest_bytes), found a larger one" in failing(robot)
        until(lambda: fine(robot))  # connected again


def test_a_lost_connection_is_told_and_made_again_and_nothing_is_sent_later(ros, monkeypatch):
    monkeypatch.setattr(rosbridge_link, "_FIRST_WAIT_S", 0.5)  # of the thread: long enough to look
    with RosbridgeRobot(ros.url, settings()) as robot:
        robot.command(np.zeros(7))
        until(lambda: ros.commands)
        ros.drop()
        assert "the connection was lost" in failing(robot)
        with pytest.raises(NotThere, match=r"the connection was lost .* is being made again"):
            robot.command(np.full(7, 0.7))
        robot.hold()
        ros.silent = {STATE}
        until(lambda: len(ros.asked("subscribe")) == 6 and robot._link._socket is not None)
        with pytest.raises(NotThere, match=f"nothing has come on {STATE} since the connection was made"):
            robot.command(np.full(7, 0.7))
        ros.silent = set()
        until(lambda: fine(robot))
        time.sleep(0.05)
        assert len(ros.commands) == 1 and ros.connections == len(ros.asked("advertise")) == 2
        robot.command(np.full(7, 0.1))
        until(lambda: len(ros.commands) == 2)


def test_an_arm_that_is_not_heard_is_not_commanded(ros, impatient):
    ros.silent = {STATE}
    time.sleep(0.7)
    with pytest.raises(NotThere, match=rf"nothing has come on {STATE} for"):
        impatient.command(np.zeros(7))
    impatient.stop()
    assert ros.commands == []


def test_cameras_of_another_time_are_not_taken_together(ros, impatient):
    _, before = impatient.observe()
    ros.behind_s = {WRIST: 0.5}
    until(lambda: _stamp(impatient._link.newest(WRIST).value) < time.time() - 0.4)
    assert impatient.observe()[1] == before  # the last ones that agreed
    found = failing(impatient)
    assert re.search(rf"at most 0.15 s apart .*, found {WRIST} 0\.\d+ s behind ", found), found
    ros.behind_s = {}
    until(lambda: fine(impatient))


@pytest.mark.parametrize("data", [b"", b"no picture", encoded(picture((1, 2, 3), (4, 5, 6)))[:300], "deep"])
def test_a_broken_picture_is_passed_over_and_one_that_stays_broken_is_told(ros, impatient, data):
    if data == "deep":
        data = encoded(np.full((20, 20), 3000, np.uint16), "PNG")
    good = ros.images[FRONT]
    ros.images[FRONT] = data
    time.sleep(0.05)
    impatient.observe()
    found = failing(impatient)
    assert f"expected JPEG or PNG, 8 bits a colour, on {FRONT}, found format 'jpeg' that does not decode" in found
    ros.images[FRONT] = good
    until(lambda: fine(impatient))


def test_without_cbor_it_reads_json(ros):
    ros.text, ros.typed = True, False
    with RosbridgeRobot(ros.url, settings()) as robot:
        np.testing.assert_allclose(robot.observe()[0]["joints"], np.arange(7) / 10, atol=1e-6)


@pytest.mark.parametrize("missing", ["cbor2", "PIL.Image"])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(RosbridgeError, match=r"needs the package .*: pip install cbor2 pillow \(the extra rosbridge\)"):
        RosbridgeRobot("ws://127.0.0.1:1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate_hz": 0.0}, "rate_hz: expected a number above 0"),
        ({"image_size": (128,)}, r"expected \(H, W\)"),
        ({"joints": ("a", "a")}, "different names"),
        ({"grippers": ("hand",)}, "some of the joints"),
        ({"cameras": (Camera("joints", FRONT),)}, "different names"),
        ({"cameras": (Camera("a", FRONT), Camera("b", FRONT))}, "different topics"),
        ({"cameras": (Camera("task", FRONT),)}, "reserved"),
        ({"lost_s": "soon"}, "a finite number"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_the_defaults_are_those_of_a_cobot_magic():
    chosen = RosbridgeSettings()
    assert chosen.topics == (STATE, FRONT, WRIST) and chosen.command_topic == COMMAND and chosen.joints == JOINTS
    assert chosen.entries == (
        Entry("front", "image", (128, 128, 3), "uint8"),
        Entry("wrist", "image", (128, 128, 3), "uint8"),
        Entry("joints", "lowdim", (7,), "float32"),
    )

"""The control loop on a simulated clock: nothing drifts, nothing stalls at a seam, whatever hangs ends in a stop."""

import threading

import numpy as np
import pytest
from support import served
from support.sockets import running

from cso_jax.runtime.client import PolicyClient
from cso_jax.runtime.control import ControlError, ControlLoop, MonotonicClock, Settings, ThreadPlanner, Watchdog
from cso_jax.runtime.safety import EmergencyStop

RATE = served.RATE


def _loop(latencies=(0.1,), *, of=None, length=16, emergency=lambda: False, **settings):
    clock = served.SimulatedClock()
    robot = served.FakeRobot(clock)
    planner = served.SimulatedPlanner(clock, latencies, length)
    settings = {"watchdog_s": 60.0, **settings}  # of the machine's own clock: tests may be slow
    loop = ControlLoop(
        robot,
        of or served.manifest(chunk_length=length),
        None,
        position_of=lambda seen: np.zeros(7),
        emergency=emergency,
        settings=Settings(**settings),
        clock=clock,
        planner=planner,
    )
    return loop, robot, planner


def test_fifty_hertz_with_a_tenth_of_a_second_of_latency_has_no_seam_stall():
    """The chunk is 16 actions, 8 of them to the next decision, and an answer takes 5 periods."""
    loop, robot, planner = _loop()
    report = loop.run(seconds=20)
    assert report.steps == 1000 and report.skipped == 0
    assert (report.waiting, report.stalls, report.commands) == (5, 0, 995)
    times = np.asarray([at for at, _ in robot.commands])
    np.testing.assert_allclose(times, np.arange(5, 1000) / RATE, atol=1e-9)  # no drift
    # Each command is the one planned for its own period, whichever chunk it comes from.
    np.testing.assert_allclose([a[0] for _, a in robot.commands], np.minimum(times * RATE * 0.01, 2.0), atol=1e-5)
    assert report.seams == report.requests - 1 - (planner.waiting is not None) > 100 and report.seam_largest < 1e-6
    assert report.latency_p50 == pytest.approx(0.1)
    assert len(robot.holds) == 5 + 1 and robot.stops == 0


@pytest.mark.parametrize("latencies", [(0.0,), (0.004, 0.1, 0.02), (0.15,), (0.1, 0.18, 0.05)])
def test_whatever_the_latency_below_the_chunk_is_bridged(latencies):
    loop, _, _ = _loop(latencies)
    report = loop.run(seconds=5)
    assert report.stalls == 0 and report.failures == 0 and report.seam_largest < 1e-6


def test_a_chunk_that_is_too_short_stalls_and_the_robot_holds():
    """With 4 actions per chunk and 5 periods of latency no action ever comes in time."""
    loop, robot, _ = _loop(length=4, of=served.manifest(chunk_length=4, horizon=4), give_up_s=100)
    report = loop.run(seconds=1)
    assert report.commands == 0 and report.waiting == 50 and report.too_late > 5
    assert len(robot.holds) == 51


def test_a_server_that_fails_for_a_while_stalls_and_goes_on():
    loop, _, _ = _loop((0.1, 0.1, *[RuntimeError("gone")] * 30, 0.1))
    report = loop.run(seconds=5)
    assert report.failures >= 30 and "gone" in report.last_error
    assert report.stalls > 0 and report.commands > 100


def test_no_chunk_for_long_stops_the_robot():
    loop, robot, _ = _loop((RuntimeError("gone\nfor good"),), give_up_s=2)
    with pytest.raises(ControlError, match="no new chunk for 2 s, robot stopped: RuntimeError: gone for good"):
        loop.run(seconds=60)
    assert robot.stops == 1 and loop.report.steps == pytest.approx(101, abs=1)


def test_an_old_observation_is_not_planned_from():
    for age in (1.0, -1.0):
        loop, robot, planner = _loop(give_up_s=100)
        robot.age_s = age
        report = loop.run(seconds=1)
        assert report.stale_observations == 50 and report.commands == 0 and planner.asked == []


def test_a_camera_that_lags_is_taken_at_its_own_time():
    """Observations are 40 ms, two periods, old: the plan is for then, and two more of its actions are past."""
    loop, robot, _ = _loop()
    robot.age_s = 0.04
    report = loop.run(seconds=2)
    assert report.stalls == 0 and report.seam_largest < 1e-6
    at, action = robot.commands[20]
    assert action[0] == pytest.approx(at * RATE * 0.01, abs=1e-5)


def test_a_period_that_takes_too_long_is_skipped_with_its_actions():
    loop, robot, _ = _loop()
    robot.takes_s = [0.0, 0.07]  # the second look takes three and a half periods: two are lost, the third comes late
    report = loop.run(seconds=1)
    assert report.skipped == 2 and report.steps == 48 and report.stalls == 0
    periods = np.asarray([at for at, _ in robot.commands]) * RATE
    assert sorted(np.round(periods % 1, 3) % 1)[-1] == 0.5
    np.testing.assert_allclose([a[0] for _, a in robot.commands], np.floor(periods + 1e-6) * 0.01, atol=1e-5)


def test_a_history_is_of_every_period():
    loop, _, planner = _loop(of=served.manifest(history=3, chunk_length=16))
    assert loop.run(seconds=2).stalls == 0
    first, later = planner.asked[0]["joints"][:, 0], planner.asked[5]["joints"][:, 0]
    assert first.tolist() == [0, 0, 0]
    np.testing.assert_allclose(np.diff(later), 1 / RATE, atol=1e-6)


def test_an_emergency_stop_stops_while_holding_too():
    for pressed_at in (2, 30):
        asked: list = []

        def emergency(asked=asked, pressed_at=pressed_at) -> bool:
            asked.append(1)
            return len(asked) > pressed_at

        loop, robot, _ = _loop(emergency=emergency)
        with pytest.raises(EmergencyStop):
            loop.run(seconds=5)
        assert robot.stops == 1


def test_whatever_the_driver_raises_stops_the_robot():
    loop, robot, _ = _loop()

    def broken(action) -> None:
        raise OSError("the bus is off")

    robot.command = broken
    with pytest.raises(OSError, match="bus"):
        loop.run(seconds=1)
    assert robot.stops == 1


def test_a_stop_from_outside_ends_in_a_hold():
    loop, robot, _ = _loop()
    stop = threading.Event()
    stop.set()
    assert loop.run(stop=stop).steps == 0 and len(robot.holds) == 1 and robot.stops == 0


def test_a_watchdog_barks_once():
    now = [0.0]
    stops: list = []
    watchdog = Watchdog(lambda: stops.append(now[0]), 1.0, clock=lambda: now[0])
    for now[0] in (0.5, 1.0, 1.1, 3.0):
        watchdog.check()
    assert stops == [1.1] and watchdog.barked


def test_a_driver_that_hangs_is_stopped_by_the_watchdog():
    loop, robot, _ = _loop(watchdog_s=0.1)
    stopped = threading.Event()
    robot.stop = stopped.set
    observe = robot.observe

    def hangs():
        assert stopped.wait(20)
        return observe()

    robot.observe = hangs
    with pytest.raises(ControlError, match="a period took longer"):
        loop.run(seconds=1)


def test_what_cannot_be_controlled_is_refused():
    robot, of = served.FakeRobot(), served.manifest()
    with pytest.raises(ValueError, match="at 30"):
        ControlLoop(served.FakeRobot(rate_hz=30.0), of, lambda seen: seen, position_of=lambda seen: seen)
    with pytest.raises(ValueError, match="position_of"):
        ControlLoop(robot, of, lambda seen: seen)
    with pytest.raises(ValueError, match="infer"):
        ControlLoop(robot, of, None, position_of=lambda seen: seen)


def test_a_thread_asks_and_the_loop_does_not_wait():
    gate = threading.Event()

    def infer(seen):
        assert gate.wait(20)
        if seen["fails"]:
            raise RuntimeError("gone")
        return np.zeros((2, 7))

    planner = ThreadPlanner(infer)
    planner.start({"fails": False})
    assert planner.poll() is None
    gate.set()
    found = _polled(planner)
    assert found.chunk.shape == (2, 7) and found.error is None and planner.poll() is None
    planner.start({"fails": True})
    assert str(_polled(planner).error) == "gone"
    planner.close()


def _polled(planner):
    for _ in range(1000):
        if found := planner.poll():
            return found
        threading.Event().wait(0.01)
    raise AssertionError("not within ten seconds")


def test_the_whole_way_over_a_socket():
    """A robot on the machine's own clock, a policy that takes 30 ms, a server between them."""
    of = served.manifest(chunk_length=32, horizon=16)
    policy = served.FakePolicy(of, latency_s=0.03)

    robot = served.FakeRobot(MonotonicClock())
    with running(policy) as server, PolicyClient("127.0.0.1", server.port) as client:
        loop = ControlLoop(
            robot,
            client.manifest,
            lambda seen: client.infer(seen, task="task1").actions,
            position_of=lambda seen: np.zeros(7),
            settings=Settings(blend=4, watchdog_s=60.0),
        )
        report = loop.run(seconds=1)
    assert report.commands > 0 and report.failures == 0 and robot.stops == 0
    assert max(abs(action[0]) for _, action in robot.commands) <= 2.0

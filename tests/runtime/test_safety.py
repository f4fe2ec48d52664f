"""What a command may be: constants worked by hand."""

import numpy as np
import pytest
from support import served

from cso_jax.runtime.manifest import Limits
from cso_jax.runtime.safety import DryRun, EmergencyStop, Safety, step_limit, towards, well_formed, within


def _command(joints: float, gripper: float = 0.0) -> np.ndarray:
    return np.asarray([joints] * 6 + [gripper], np.float32)


def _begun(**changed) -> Safety:
    safety = Safety(served.manifest(**changed), period_s=0.02)
    safety.begin(_command(0.0))
    return safety


def test_the_step_is_the_smaller_of_max_step_and_velocity_times_period():
    limits = Limits(("a", "b"), None, None, (5.0, 1.0), (0.04, 0.04))
    np.testing.assert_allclose(step_limit(limits, 0.02), [0.04, 0.02])  # 5 * 0.02 = 0.1 and 1 * 0.02
    assert np.isinf(step_limit(Limits(("a",), None, None, None, None), 0.02)).all()


def test_towards_and_within_by_hand():
    step = np.asarray([0.1, 0.1, 0.1])
    moved = towards(np.asarray([0.0, 1.0, 0.0]), np.asarray([0.05, 0.0, 9.0]), step)
    np.testing.assert_allclose(moved, [0.05, 0.9, 0.1])
    low, high = np.asarray([-1.0, -2.0]), np.asarray([1.0, 2.0])
    np.testing.assert_allclose(within(np.asarray([-3.0, 3.0]), low, high), [-1, 2])


def test_a_command_within_the_limits_is_sent_as_it_is():
    safety = _begun()
    found = safety.filter(_command(0.05, 0.04))
    np.testing.assert_allclose(found.action, _command(0.05, 0.04))
    assert found.reasons == () and found.action.dtype == np.float32 and not safety.counts


def test_a_jump_takes_several_steps():
    """Velocity 5 rad/s at 50 Hz is 0.1 rad a step, and so is max_step."""
    safety = _begun()
    found = [safety.filter(_command(0.25)).action[0] for _ in range(4)]
    np.testing.assert_allclose(found, [0.1, 0.2, 0.25, 0.25], atol=1e-6)
    assert safety.counts == {"step": 2}


def test_positions_end_at_the_joint_limits_and_the_gripper_at_its_range():
    safety = _begun(limits=Limits(tuple(f"joint{i}" for i in range(6)), (-2.0,) * 6, (0.05,) * 6, None, None))
    found = safety.filter(_command(1.0, 0.5))
    np.testing.assert_allclose(found.action, _command(0.05, 0.08))
    assert found.reasons == ("range",)


@pytest.mark.parametrize(
    "bad",
    [np.full(7, np.nan), _command(np.inf), np.zeros(6), np.zeros((1, 7)), None, [None] * 7, np.zeros(7, complex), "x"],
    ids=repr,
)
def test_what_is_no_command_repeats_the_last(bad):
    safety = _begun()
    safety.filter(_command(0.05))
    found = safety.filter(bad)
    np.testing.assert_allclose(found.action, _command(0.05))
    assert found.reasons == ("malformed",) and safety.counts == {"malformed": 1}
    assert not well_formed(bad, 7)


def test_without_a_start_the_first_command_is_not_sent():
    safety = Safety(served.manifest(), 0.02)
    assert safety.filter(_command(0.0)) == (None, ("no_start",))
    assert safety.filter(np.full(7, np.nan)).action is None
    with pytest.raises(ValueError, match="7 finite numbers"):
        safety.begin(np.zeros(3))


def test_without_limits_only_the_range_of_actions_holds():
    safety = Safety(served.manifest(limits=None), 0.02)
    np.testing.assert_allclose(safety.filter(_command(9.0, 9.0)).action, _command(3.0, 0.08))


def test_an_emergency_stop_holds_for_good():
    pressed = [False, True, False]
    safety = Safety(served.manifest(), 0.02, lambda: pressed.pop(0))
    safety.begin(_command(0.0))
    safety.filter(_command(0.0))
    for _ in range(2):
        with pytest.raises(EmergencyStop, match="emergency stop"):
            safety.filter(_command(0.0))
    other = _begun()
    other.stop()
    with pytest.raises(EmergencyStop):
        other.check()


def test_limits_of_joints_that_are_not_commanded_are_refused():
    with pytest.raises(ValueError, match="'elbow'"):
        Safety(served.manifest(limits=Limits(("elbow",), None, None, None, (0.1,))), 0.02)


def test_a_dry_run_records_what_would_have_been_sent(tmp_path):
    times = iter([1.0, 2.0, 3.0])
    run = DryRun(served.FakeRobot(), lambda: next(times))
    run.command(_command(0.5))
    run.hold()
    run.command(_command(0.25))
    run.save(tmp_path / "dry.npz")
    with np.load(tmp_path / "dry.npz") as found:
        assert found["time_s"].tolist() == [1, 3] and found["held_s"].tolist() == [2]
        assert found["action"][:, 0].tolist() == [0.5, 0.25]
    assert run._robot.commands == [] and run.rate_hz == 50
    DryRun(served.FakeRobot(), lambda: 0.0).save(tmp_path / "empty.npz")

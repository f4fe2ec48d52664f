"""The tabletop's tasks without a simulator: what counts, what narrowly does not, and where objects are placed."""

import importlib.util

import numpy as np
import pytest
from support.tabletop import STATE, world

from cso_jax import envs
from cso_jax.envs.protocol import EvalInit, TrainInit
from cso_jax.envs.tabletop import benchmark, tasks
from cso_jax.envs.tabletop.robots import ROBOTS, VIPERX
from cso_jax.envs.tabletop.tasks import RADII, TASKS, placements

RED = (0.35, 0.0, 0.02)
ON_RED = (0.36, 0.01, 0.06)


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ({}, True),
        ({"yellow_cube": (0.35, 0.019, 0.06)}, True),
        ({"yellow_cube": (0.35, 0.021, 0.06)}, False),
        ({"yellow_cube": (0.35, 0.0, 0.07)}, False),
        ({"yellow_cube": (0.35, 0.0, 0.10), "red_cube": (0.35, 0.0, 0.06)}, False),
        ({"touched": ["yellow_cube"]}, False),
        ({"touched": ["red_cube"]}, False),
        ({"speed": {"yellow_cube": 0.1}}, False),
    ],
    ids=str,
)
def test_cube_on_cube(changed, counts):
    assert tasks.cube_on_cube(world(**{"yellow_cube": ON_RED, "red_cube": RED, **changed})) is counts


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ({}, True),
        ({"red_cube": (0.35, 0.04, 0.026)}, True),
        ({"red_cube": (0.35, 0.05, 0.026)}, False),
        ({"red_cube": (0.35, 0.0, 0.05)}, False),
        ({"touched": ["red_cube"]}, False),
        ({"touched": ["bowl"]}, True),
        ({"upright": {"bowl": 0.9}}, False),
    ],
    ids=str,
)
def test_cube_in_bowl(changed, counts):
    assert tasks.cube_in_bowl(world(**{"red_cube": (0.35, 0, 0.026), "bowl": (0.35, 0, 0), **changed})) is counts


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ({}, True),
        ({"red_cube": (0.35, 0.023, 0.095)}, True),
        ({"red_cube": (0.35, 0.025, 0.095)}, False),
        ({"red_cube": (0.35, 0.0, 0.02)}, False),
        ({"upright": {"bottle": 0.9}}, False),
        ({"bottle": (0.35, 0, 0.02), "red_cube": (0.35, 0.0, 0.115)}, False),
        ({"touched": ["red_cube"]}, False),
    ],
    ids=str,
)
def test_cube_on_bottle(changed, counts):
    assert tasks.cube_on_bottle(world(**{"red_cube": (0.35, 0, 0.095), "bottle": (0.35, 0, 0), **changed})) is counts


def test_the_button_counts_from_three_quarters_of_its_travel():
    assert tasks.button_pressed(world(pressed=0.0076))
    assert not tasks.button_pressed(world(pressed=0.0074))


CUBE_IN = {"yellow_cube": (0.30, 0.1, 0.026), "bowl": (0.30, 0.1, 0.0), "plate": (0.35, -0.1, 0.0)}
BOTH = {"yellow_cube": (0.35, -0.08, 0.038), "bowl": (0.35, -0.08, 0.012), "plate": (0.35, -0.1, 0.0)}
EMPTY = {**BOTH, "yellow_cube": (0.30, 0.1, 0.02)}


@pytest.mark.parametrize(
    ("changed", "first", "second"),
    [
        (CUBE_IN, True, False),
        (BOTH, False, True),
        (EMPTY, False, False),
        ({**BOTH, "touched": ["bowl"]}, False, False),
        ({**BOTH, "plate": (0.35, -0.119, 0.0)}, False, True),
        ({**BOTH, "plate": (0.35, -0.121, 0.0)}, True, False),
        ({**BOTH, "bowl": (0.35, -0.08, 0.03), "yellow_cube": (0.35, -0.08, 0.056)}, True, False),
    ],
    ids=["cube in", "both", "empty bowl", "held", "near the edge", "beyond", "above the plate"],
)
def test_sequential_placement(changed, first, second):
    seen = world(**changed)
    assert (tasks.cube_then_bowl(seen), tasks.full_bowl_on_plate(seen)) == (first, second)


@pytest.mark.parametrize("task", TASKS)
def test_placements_keep_apart_and_within_the_area(task):
    (low_x, low_y), (high_x, high_y) = TASKS[task].area
    for index in range(50):
        placed = placements(TrainInit(task, index))
        assert tuple(placed) == TASKS[task].objects
        for name, (spot, turn) in placed.items():
            assert low_x <= spot[0] <= high_x and low_y <= spot[1] <= high_y and abs(turn) <= 0.5
            for other, (place, _) in placed.items():
                assert other == name or np.linalg.norm(spot - place) > RADII[name] + RADII[other]


def test_the_splits_share_no_placement():
    seen = {tuple(placements(kind("press-button", index))["button"][0])
            for kind in (TrainInit, EvalInit) for index in range(100)}  # fmt: skip
    assert len(seen) == 200
    first, again = (placements(EvalInit("cube-on-cube", 3))["red_cube"] for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])


def test_actions_are_linear_between_the_limits_and_clipped_to_them():
    np.testing.assert_allclose(VIPERX.joints_of(-np.ones(7)), VIPERX.lower)
    np.testing.assert_allclose(VIPERX.joints_of(np.zeros(7)), np.add(VIPERX.lower, VIPERX.upper) / 2)
    np.testing.assert_allclose(VIPERX.joints_of(np.full(7, 9.0)), VIPERX.upper)
    assert [VIPERX.opening_of(np.array([0, 0, 0, 0, 0, 0, value])) for value in (-5, -1, 0, 1)] == [0.0, 0.0, 0.5, 1.0]


def test_an_action_names_the_posture_that_it_was_made_from():
    joints = np.array([0.3, -0.2, 0.7, 0.1, 1.4, -1.1])
    action = VIPERX.action_of(joints, 0.25)
    np.testing.assert_allclose(VIPERX.joints_of(action), joints)
    assert VIPERX.opening_of(action) == pytest.approx(0.25)


@pytest.mark.parametrize("name", ROBOTS)
def test_the_interface_is_in_the_units_of_the_actions(name):
    interface = benchmark.robot_interface({**STATE, "robot": name})
    robot, limits = ROBOTS[name], interface.limits
    assert interface.rate_hz == 20 and interface.scaled and interface.names == (*robot.joints, "gripper")
    action = np.array([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, -1.0])
    low, high = np.array(interface.low), np.array(interface.high)
    physical = low + (action + 1) / 2 * (high - low)
    np.testing.assert_allclose(physical, [*robot.joints_of(action), robot.opening_of(action)])
    assert limits is not None and limits.joints == robot.joints
    assert {len(values) for values in (limits.velocity, limits.max_step, limits.position_low)} == {6}
    assert limits.max_step[0] == pytest.approx(limits.velocity[0] / 20)


def test_spec_of_state_and_pixels():
    assert benchmark.spec(STATE).lowdim == {"proprio": 7, "state": 33}
    pixels = benchmark.spec({**STATE, "obs": "pixels", "image_size": 64})
    assert (pixels.lowdim, pixels.action_dim) == ({"proprio": 7}, 7)
    assert pixels.images == {"front": (64, 64, 3), "wrist": (64, 64, 3)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"robot": "viper"}, "robot must be one of viperx, piper, got 'viper'; did you mean viperx"),
        ({"obs": "depth"}, "obs must be"),
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"control_hz": 30}, "control_hz must be one of 10, 20, 25, got 30"),
        ({"cameras": ()}, "cameras must be some of front, wrist, got none"),
        ({"cameras": ("top",)}, "got top"),
        ({"render": {"shadow": True}}, "render takes shadows, reflections, msaa"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        benchmark.spec({**STATE, **change})


def test_unknown_tasks_name_those_there_are():
    with pytest.raises(ValueError, match="no task 'cube-on-plate'; there are cube-on-cube, "):
        placements(TrainInit("cube-on-plate", 0))
    with pytest.raises(ValueError, match="did you mean press-button"):
        envs.task_names({"name": "tabletop", "tasks": ("press-buton",)})


@pytest.mark.parametrize(("name", "package"), [("viperx", "gym-aloha 0.1.5"), ("piper", "piper_control 1.5.0")])
def test_a_missing_package_is_one_line_with_the_command(monkeypatch, name, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps -r requirements-tabletop.txt") as error:
        envs.require_files({**STATE, "robot": name})
    assert "\n" not in str(error.value) and package in str(error.value)
    with pytest.raises(FileNotFoundError):
        benchmark.make_environments({**STATE, "robot": name}, 1)

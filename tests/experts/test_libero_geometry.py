"""Boxes and height fields, the plan's order of sub-goals, and the experts' table: of LIBERO's packages only numba."""

import numpy as np
import pytest

from cso_jax.experts.libero import arm as libero_arm
from cso_jax.experts.libero import geometry as libero_geometry
from cso_jax.experts.libero import planner as libero_planner
from cso_jax.experts.libero.geometry import CELL, Boxes

UP = np.array([0.0, 0.0, 1.0])


def box(centre, half, yaw=0.0):
    axes = libero_geometry.rotation_about(UP, yaw)
    return Boxes(np.array([centre], float), axes[None], np.array([half], float))


def test_a_height_field_holds_the_top_and_the_bottom_of_what_stands_on_each_cell():
    field = libero_geometry.height_field(
        box([0.1, 0.0, 0.5], [0.02, 0.05, 0.1]), np.array([0.0, -0.2]), np.array([0.2, 0.2]), floor=0.0
    )
    assert field.highest(np.array([0.09, -0.01]), np.array([0.11, 0.01])) == pytest.approx(0.6)
    assert field.highest(np.array([0.0, -0.2]), np.array([0.05, 0.2])) == 0.0
    filled = np.isfinite(field.bottom)
    assert field.bottom[filled] == pytest.approx(0.4)
    assert filled.sum() * CELL**2 == pytest.approx(0.04 * 0.1, rel=0.3)


def test_a_thin_wall_between_the_cells_is_seen():
    wall = box([0.0501, 0.0, 0.1], [0.0005, 0.05, 0.1], yaw=0.3)
    field = libero_geometry.height_field(wall, np.array([-0.1, -0.1]), np.array([0.2, 0.1]), floor=0.0)
    assert (field.top.max(axis=0) > 0.19).sum() >= 20


def test_a_grown_field_reaches_as_far_beyond_a_box_on_every_side():
    post, low, high = box([0.0, 0.0, 0.1], [0.02, 0.01, 0.1]), np.array([-0.1, -0.1]), np.array([0.1, 0.1])
    field = libero_geometry.height_field(post, low, high, grown=0.016)
    places = field.corner + CELL * np.argwhere(np.isfinite(field.top))
    np.testing.assert_allclose(places.min(0), [-0.036, -0.024], atol=CELL)
    np.testing.assert_allclose(places.max(0), [0.036, 0.024], atol=CELL)


def test_clearance_is_the_lift_that_just_frees_a_thing():
    table = libero_geometry.height_field(
        box([0.0, 0.0, 0.0], [0.3, 0.3, 0.1]), np.array([-0.4, -0.4]), np.array([0.4, 0.4]), floor=-1.0
    )
    assert libero_geometry.clearance(table, box([0.1, 0.1, 0.05], [0.02, 0.02, 0.03])) == pytest.approx(0.08)
    assert libero_geometry.clearance(table, box([0.1, 0.1, 0.5], [0.02, 0.02, 0.03])) == pytest.approx(-0.37)
    assert libero_geometry.clearance(table, box([5.0, 0.0, 0.0], [0.02, 0.02, 0.03])) == -np.inf


def test_overlap_sees_a_turned_box_and_honours_the_margin():
    post = box([0.0, 0.0, 0.0], [0.1, 0.01, 0.1], yaw=np.pi / 4)
    assert libero_geometry.overlap(box([0.05, 0.05, 0.0], [0.01, 0.01, 0.01]), post)
    assert not libero_geometry.overlap(box([0.05, -0.05, 0.0], [0.01, 0.01, 0.01]), post)
    beside = box([0.03, 0.0, 0.0], [0.01, 0.01, 0.01])
    straight = box([0.0, 0.0, 0.0], [0.01, 0.1, 0.1])
    assert not libero_geometry.overlap(beside, straight, 0.005)
    assert libero_geometry.overlap(beside, straight, 0.015)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.3, 2.0, np.pi - 1e-9])
def test_a_rotation_vector_undoes_rotation_about(angle):
    axis = np.array([2.0, -1.0, 2.0]) / 3.0
    made = libero_geometry.rotation_vector(libero_geometry.rotation_about(axis, angle))
    np.testing.assert_allclose(made, angle * axis, atol=1e-6)


def test_boxes_seen_from_a_frame_move_back_with_it():
    rotation = libero_geometry.rotation_about(np.array([1.0, 0.0, 0.0]), 0.7)
    boxes, place = box([0.3, 0.1, 0.2], [0.1, 0.2, 0.3], yaw=0.2), np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(boxes.seen_from(place, rotation).moved(place, rotation).corners(), boxes.corners())


class StandingArm(libero_arm.Arm):
    """An arm whose hand points down in one place, `yaw` from the neutral direction."""

    def __init__(self, yaw):
        self.style = libero_arm.Style(speed=1.0, hover=0.0, turn=0.0)
        self.grip = libero_arm.OPEN
        self._base = np.zeros(2)
        self._facing = libero_arm.pointing_down(self.neutral_yaw(self.place) + yaw)

    place = np.array([0.5, 0.0, 1.0])

    def hand(self):
        return self.place, self._facing


@pytest.mark.parametrize(("now", "wanted", "sign"), [(2.1, -1.1, -1), (-2.1, 1.1, 1), (0.5, 1.5, 1), (1.5, -0.5, -1)])
def test_the_wrist_turns_through_the_middle_of_its_range(now, wanted, sign):
    arm = StandingArm(now)
    rotation = libero_arm.pointing_down(arm.neutral_yaw(arm.place) + wanted)
    turn = arm.act(arm.place, rotation)[3:6]
    assert np.sign(turn[2]) == sign and np.abs(turn[:2]).max() < 1e-9


def test_a_hand_that_points_down_opens_along_its_yaw():
    rotation = libero_arm.pointing_down(0.4)
    np.testing.assert_allclose(rotation[:, 0], [np.cos(0.4), np.sin(0.4), 0.0])
    np.testing.assert_allclose(rotation[:, 2], -UP)
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0)


class FakeScene:
    """A scene that knows nothing but its goal, what holds of it, and which regions move."""

    def __init__(self, goal, holding=(), moving=()):
        self.goal = goal
        self.env = self
        self.object_sites_dict = {name: FakeSite(["joint"] if name in moving else []) for name in self._regions()}
        self._holding = set(holding)

    def _regions(self):
        return {name for goal in self.goal for name in goal[1:]}

    def holds(self, *goal):
        return goal in self._holding


class FakeSite:
    def __init__(self, joints):
        self.joints = joints


class FakeArm:
    def __init__(self, scene):
        self.scene = scene


def steps_of(goal, moving=()):
    """The sub-goals in the order in which they are worked on if each succeeds."""
    holding, order = set(), []
    while True:
        step = libero_planner.next_goal(FakeArm(FakeScene(goal, holding, moving)))
        if step is None:
            return order
        order.append(step)
        holding.add(step)


def test_a_drawer_is_opened_filled_and_closed():
    goal = (("close", "drawer"), ("in", "bowl", "drawer"))
    assert steps_of(goal, {"drawer"}) == [("open", "drawer"), ("in", "bowl", "drawer"), ("close", "drawer")]


def test_a_drawer_is_not_opened_for_what_goes_on_top():
    goal = (("close", "drawer"), ("on", "bowl", "top"))
    assert steps_of(goal, {"drawer"}) == [("close", "drawer"), ("on", "bowl", "top")]


def test_what_carries_something_is_placed_first():
    goal = (("on", "bowl_1", "bowl_2"), ("in", "bowl_2", "tray"))
    assert steps_of(goal) == [("in", "bowl_2", "tray"), ("on", "bowl_1", "bowl_2")]


def test_the_stove_is_turned_on_before_the_pot_stands_on_it():
    goal = (("on", "pot", "stove_region"), ("turnon", "stove"))
    assert steps_of(goal) == [("turnon", "stove"), ("on", "pot", "stove_region")]

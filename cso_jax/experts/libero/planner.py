"""From the goal of a LIBERO task to motions: sub-goals in a sensible order, repeated until the goal holds."""

from collections.abc import Generator

import numpy as np

from cso_jax.experts.libero.arm import OPEN, Arm
from cso_jax.experts.libero.fixtures import close_part, open_part, turn_knob
from cso_jax.experts.libero.grasp import FLAT, Grasp, category
from cso_jax.experts.libero.insert import is_roofed, way_in
from cso_jax.experts.libero.place import Held, Region, region_of
from cso_jax.experts.libero.primitives import insert, pick, press, push, put, topple

Goal = tuple[str, ...]

_FAILURES = 4
_STANDS = 3  # tries to make a thing stand in a drawer that it could jam
_LEANING = 0.98  # cosine of the angle by which an object has turned over since it was picked up


def expert(arm: Arm) -> Generator[np.ndarray, None, None]:
    """Actions `[7]` for as long as they are wanted: works on the goal, then keeps still.

    A sub-goal that is undone later, or was missed, is worked on again; after a few failures in a row the expert gives
    up and keeps still.
    """
    yield from arm.wait_for_rest()
    failures = 0
    while True:
        goal = next_goal(arm)
        if goal is None or failures == _FAILURES:
            if goal is None:
                arm.grip = OPEN
            yield from arm.hold(5)
            continue
        yield from _achieve(arm, goal)
        failures = 0 if arm.scene.holds(*goal) else failures + 1
        yield from arm.hold(1)  # whatever was possible is done: look again


def next_goal(arm: Arm) -> Goal | None:
    """The sub-goal to work on now, None if all hold.

    Parts that must be open are opened first; what goes under another object is placed before it; a part is closed when
    everything is in it.
    """
    missing = [goal for goal in arm.scene.goal if not arm.scene.holds(*goal)]
    if not missing:
        return None
    goal = min(missing, key=lambda goal: _rank(goal, missing))
    if goal[0] == "in" and _moves(arm, goal[2]) and not arm.scene.holds("open", goal[2]):
        return ("open", goal[2])
    return goal


def _rank(goal: Goal, missing: list[Goal]) -> int:
    predicate, *names = goal
    if predicate == "close":
        return 3 if any(other[0] == "in" and other[2].startswith(names[0]) for other in missing) else 0
    if predicate in ("open", "turnon", "turnoff"):
        return 0
    return 2 if any(other[1] == names[1] for other in missing if other[0] in ("in", "on")) else 1


def _moves(arm: Arm, region: str) -> bool:
    sites = arm.scene.env.object_sites_dict
    return region in sites and bool(sites[region].joints)


def _achieve(arm: Arm, goal: Goal) -> Generator[np.ndarray, None, None]:
    predicate, *names = goal
    if predicate == "on" and category(names[0]) in FLAT and names[1] not in arm.scene.objects:
        yield from push(arm, names[0], names[1])
    elif predicate in ("in", "on"):
        upright = arm.scene.object_pose(names[0])[1][2]
        if is_roofed(arm, region_of(arm, names[1])):
            yield from _achieve_under_roof(arm, names[0], names[1], upright)
            return
        for _ in range(_STANDS):
            held = yield from pick(arm, names[0], region_of(arm, names[1]).middle)
            if not held:
                return
            yield from put(arm, names[0], names[1], upright)
            region = region_of(arm, names[1])
            if predicate == "in" and region.is_under(arm.scene.object_pose(names[0])[0]):
                yield from _lay_down(arm, names[0], region)
                return
            leans = arm.scene.object_pose(names[0])[1][2] @ upright < _LEANING
            if not leans or not _moves(arm, names[1]):
                return
        yield from press(arm, names[0], names[1])
    elif predicate == "open":
        yield from open_part(arm, names[0])
    elif predicate == "close":
        yield from close_part(arm, names[0])
    else:
        yield from turn_knob(arm, names[0], predicate)


def _lay_down(arm: Arm, name: str, region: Region) -> Generator[np.ndarray, None, None]:
    """What stands in `region` and is too tall for it falls along its longer side, to where there is more room."""
    side = int(np.argmax(region.half))
    along = np.eye(3)[side]
    yield from topple(arm, name, -along if arm.scene.object_pose(name)[0][side] > region.middle[side] else along)


def _achieve_under_roof(arm: Arm, name: str, target: str, upright: np.ndarray) -> Generator[np.ndarray, None, None]:
    region = region_of(arm, target)

    def suits(grasp: Grasp) -> bool:
        held = Held.at(arm, name, grasp.position, grasp.rotation)
        return way_in(arm, name, held, grasp.rotation, region) is not None

    held = yield from pick(arm, name, region.middle, by_handle=True, suits=suits)
    if held:
        yield from insert(arm, name, target, upright)

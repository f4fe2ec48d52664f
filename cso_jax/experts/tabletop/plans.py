"""How each task is done: sequences of motions that look at the scene before each of their parts.

What has slipped or was missed is tried again; a plan ends by keeping still, so that it can be asked for ever.
"""

from collections.abc import Callable

import numpy as np

from cso_jax.envs.tabletop.arms import FINGERTIP
from cso_jax.envs.tabletop.scene import (
    BOTTLE_HEIGHT,
    BOWL_FLOOR,
    BOWL_HEIGHT,
    BOWL_RADIUS,
    BOWL_SIDES,
    BOWL_WALL,
    BUTTON_BASE_HEIGHT,
    BUTTON_HEIGHT,
    BUTTON_TRAVEL,
    CUBE,
    PLATE_HEIGHT,
)
from cso_jax.envs.tabletop.tasks import bowl_on_plate, in_bowl
from cso_jax.experts.tabletop.motions import Arm, Motion

_TRIES = 4
_TRAVEL = 0.09  # above what is on the way, m
_CUBE_GAP = 0.062  # between the pads around a cube before and after holding it
_RIM_GAP = 0.036  # around the wall of the bowl
_RIM_DEPTH = 0.016  # of the grip site below the rim
_SLOW = 0.6


def cube_on_cube(arm: Arm) -> Motion:
    """The yellow cube onto the red one."""
    yield from _cube_onto(arm, "yellow_cube", "red_cube", CUBE)


def cube_on_bottle(arm: Arm) -> Motion:
    """The red cube onto the bottle's cap."""
    yield from _cube_onto(arm, "red_cube", "bottle", BOTTLE_HEIGHT)


def cube_in_bowl(arm: Arm) -> Motion:
    """The red cube into the bowl."""
    yield from _cube_into_bowl(arm, "red_cube")


def press_button(arm: Arm) -> Motion:
    """The closed fingers onto the button, and down."""
    yield from arm.fingers(0.0)
    for _ in range(_TRIES):
        place, yaw = arm.position_of("button"), arm.yaw_of("button")
        top = BUTTON_BASE_HEIGHT + BUTTON_HEIGHT + FINGERTIP
        yield from arm.move(place + up(top + 0.05 + arm.style.hover), yaw)
        yield from arm.move(place + up(top - BUTTON_TRAVEL - 0.002), yaw, speed=_SLOW)
        yield from arm.wait(0.4)
        yield from arm.move(place + up(top + 0.05), yaw)


def sequential_placement(arm: Arm) -> Motion:
    """The yellow cube into the bowl, then the bowl, held by its rim, onto the plate."""
    yield from _cube_into_bowl(arm, "yellow_cube")
    for _ in range(_TRIES):
        if bowl_on_plate(arm.simulator.world()):
            break
        yield from _bowl_onto_plate(arm)


PLANS: dict[str, Callable[[Arm], Motion]] = {
    "cube-on-cube": cube_on_cube,
    "cube-in-bowl": cube_in_bowl,
    "press-button": press_button,
    "cube-on-bottle": cube_on_bottle,
    "sequential-placement": sequential_placement,
}


def up(height: float) -> np.ndarray:
    """The vector `[3]` that leads up by `height`."""
    return np.array([0.0, 0.0, height])


def plan(arm: Arm, task: str) -> Motion:
    """The motions of a task, then keeping still without end."""
    yield from PLANS[task](arm)
    while True:
        yield arm.action()


def _pick(arm: Arm, name: str) -> Motion:
    """Take hold of a cube and lift it; tried again where it was missed."""
    for _ in range(_TRIES):
        place, yaw = arm.position_of(name), arm.yaw_of(name)
        above = _TRAVEL + arm.style.hover
        yield from arm.move(place + up(above), yaw)
        yield from arm.move(place, yaw, speed=_SLOW)
        yield from arm.settle()
        yield from arm.fingers(0.0)
        yield from arm.move(place + up(above), yaw)
        if _held(arm, name):
            return
        yield from arm.fingers(1.0)


def _held(arm: Arm, name: str) -> bool:
    return bool(np.linalg.norm(arm.position_of(name) - arm.grip()) < 1.5 * CUBE)


def _cube_onto(arm: Arm, cube: str, base: str, height: float) -> Motion:
    """`cube` onto `base`, whose top is `height` above its origin."""
    for _ in range(_TRIES):
        yield from _pick(arm, cube)
        target = arm.position_of(base) + up(height + CUBE)
        # A bottle is round: the cube keeps its own turn.
        yaw = arm.yaw_of(base) if base == "red_cube" else arm.yaw_of(cube)
        clear = up(0.05 + arm.style.hover)
        grip = arm.grip()
        yield from arm.move(np.array([*grip[:2], max(grip[2], target[2] + clear[2])]), yaw)
        yield from arm.move(target + clear, yaw)
        yield from arm.settle()
        # What the cube hangs off the middle of the grip is put right on the way down.
        off = arm.grip() - arm.position_of(cube)
        yield from arm.move(target + off + up(0.002), yaw, speed=_SLOW)
        yield from arm.settle()
        yield from arm.part(_CUBE_GAP)
        yield from arm.move(target + clear, yaw, speed=_SLOW)
        if np.linalg.norm(arm.position_of(cube) - target) < CUBE:
            return


def _cube_into_bowl(arm: Arm, cube: str) -> Motion:
    for _ in range(_TRIES):
        yield from _pick(arm, cube)
        bowl, yaw = arm.position_of("bowl"), arm.yaw_of(cube)
        high = bowl + up(BOWL_HEIGHT + 0.06 + arm.style.hover)
        yield from arm.move(high, yaw)
        yield from arm.move(bowl + up(BOWL_FLOOR + CUBE + 0.022), yaw, speed=_SLOW)
        yield from arm.settle()
        yield from arm.part(0.052)
        yield from arm.move(high, yaw)
        if in_bowl(arm.simulator.world(), cube):
            return


def _bowl_onto_plate(arm: Arm) -> Motion:
    spot, yaw = _rim(arm)
    clear = up(0.06 + arm.style.hover)
    yield from arm.move(spot + clear, yaw)
    yield from arm.part(_RIM_GAP)
    yield from arm.move(spot, yaw, speed=_SLOW)
    yield from arm.settle()
    yield from arm.fingers(0.0)
    yield from arm.move(spot + clear, yaw, speed=_SLOW)
    yield from arm.settle()
    off = arm.grip() - arm.position_of("bowl")
    plate = arm.position_of("plate")
    target = plate + off + up(PLATE_HEIGHT)
    yield from arm.move(target + up(0.05), yaw, speed=_SLOW)
    yield from arm.move(target + up(0.004), yaw, speed=_SLOW)
    yield from arm.settle()
    yield from arm.part(_RIM_GAP)
    yield from arm.move(target + clear, yaw)


def _rim(arm: Arm) -> tuple[np.ndarray, float]:
    """Where to hold the bowl, `[3]`, and the hand's turn: where the wrist turns least, away from the cube."""
    place, rotation = arm.simulator.pose("bowl")
    cube = arm.position_of("yellow_cube") - place
    neutral = float(np.arctan2(place[1], place[0]))
    best: tuple[float, np.ndarray, float] | None = None
    for side in range(BOWL_SIDES):
        angle = 2 * np.pi * side / BOWL_SIDES
        outwards = rotation @ np.array([np.cos(angle), np.sin(angle), 0.0])
        # The fingers open across the wall; half a turn changes nothing.
        yaw = float(np.arctan2(outwards[1], outwards[0])) + np.pi / 2
        turn = (yaw - neutral + np.pi / 2) % np.pi - np.pi / 2
        room = BOWL_RADIUS - float(cube @ outwards) - np.sqrt(2) * CUBE  # between wall and cube, at worst
        left_side = float(outwards[1] > 0)
        cost = abs(turn) + 0.5 * left_side + 100.0 * max(0.0, 0.5 * _RIM_GAP + 0.012 - room)
        if best is None or cost < best[0]:
            best = cost, outwards, neutral + turn
    assert best is not None
    _, outwards, yaw = best
    return place + outwards * (BOWL_RADIUS + BOWL_WALL / 2) + up(BOWL_HEIGHT - _RIM_DEPTH), yaw

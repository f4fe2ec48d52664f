"""The few things an expert can do with one object: pick it up, and put it down somewhere."""

import itertools
from collections.abc import Callable, Generator

import numpy as np

from cso_jax.experts.libero.arm import CLOSED, FINGERTIP, FULL_OPENING, OPEN, Arm, Motion, hand_boxes, pointing_down
from cso_jax.experts.libero.geometry import CELL, HeightField, clearance, lowest, overlap, rotation_about
from cso_jax.experts.libero.grasp import Grasp, grasps
from cso_jax.experts.libero.insert import TIGHTER_GAPS, WayIn, way_in
from cso_jax.experts.libero.place import Held, placements, region_of, underside

_TRIES = 3
_LIFTS = (0.05, 0.1)  # what hangs by its handle leaves the table later than the hand
_UP = np.array([0.0, 0.0, 1.0])
_ABOVE = 0.05
_OVERHEAD, _FARTHEST_OUT = 0.01, 50  # metres, cells
_WAYS, _NEARLY_IN = 2, 0.02
_RUN_UP, _TOPPLED = 0.03, 0.08
_LEVEL, _MOST_LEVELLED = 0.01, 0.6
_PUT_TURNS = (0.0, np.pi / 2, -np.pi / 2)
_PUSH_LEVEL, _PUSH_STEPS = 0.004, 120
_PUSH_SKEWS, _PUSH_TILTS = (0.0, 0.2, -0.2, 0.45, -0.45, 0.6, -0.6), (0.0, 0.25, 0.4)


def pick(
    arm: Arm,
    name: str,
    towards: np.ndarray | None = None,
    *,
    by_handle: bool = False,
    suits: Callable[[Grasp], bool] | None = None,
) -> Motion:
    """Take the object `name` into the hand and lift it a little; True if it is held.

    `by_handle` is that of `grasps`; grasps that `suits` refuses are not tried.
    """
    failed: list[np.ndarray] = []
    for _ in range(_TRIES):
        field = arm.obstacles()
        choices = (g for g in grasps(arm, name, field, towards, by_handle=by_handle) if _is_new(g, failed))
        grasp = next((choice for choice in choices if suits is None or suits(choice)), None)
        if grasp is None:
            return False
        seen = arm.scene.object_pose(name)[0]
        arm.grip = OPEN if grasp.opening == 0.04 else grasp.opening
        above = grasp.position + np.array([0.0, 0.0, 0.04])
        yield from arm.travel(above, grasp.rotation, field)
        moved = np.linalg.norm(arm.scene.object_pose(name)[0] - seen) > 0.01
        if moved:
            continue
        yield from arm.reach(grasp.position, grasp.rotation, tolerance=0.004, limit=40)
        yield from arm.squeeze()
        before, _ = arm.scene.object_pose(name)
        for height in _LIFTS:
            yield from arm.reach(grasp.position + height * _UP, grasp.rotation, tolerance=0.02, limit=20)
            if holds(arm, name) and arm.scene.object_pose(name)[0][2] > before[2] + 0.015:
                return True
        failed.append(grasp.position)
        yield from arm.release(name)
    return False


def holds(arm: Arm, name: str) -> bool:
    """Whether the object is between the fingers: both touch it, or stand off each other near it."""
    touching = arm.touching(name)
    return touching == 2


def put(arm: Arm, name: str, target: str, upright: np.ndarray) -> Motion:
    """Carry the held object `name` to `target` (object, fixture or site) and let go of it.

    `upright` `[3]`: what pointed up in the object's own frame before it was picked up. In the hand it may have turned.
    """
    field = arm.obstacles(name)
    held = Held.measure(arm, name)
    region = region_of(arm, target)
    # On a surface things stand side by side, in a container they may lie on each other.
    beside = [goal for goal in arm.scene.goal if goal[0] == "on" and goal[2] == target and goal[1] != name]
    crowded = any(not arm.scene.holds(*goal) for goal in beside)
    shared = any(arm.scene.holds(*goal) for goal in beside)
    level = _levelled(arm, name, upright)
    facings = [arm.leaning(rotation_about(_UP, turn) @ level, region.middle) for turn in _PUT_TURNS]
    placement = placements(arm, held, region, field, facings, crowded=crowded, shared=shared)[0]
    yield from _from_under(arm, held, field)
    yield from arm.cross(placement.position + _ABOVE * _UP, placement.rotation, field, held.boxes)
    # Things turn and slip in the hand: where to go exactly is looked at again before the way down and near its end.
    for height in (arm.hand()[0][2] - placement.position[2], _ABOVE, 0.0):
        if not holds(arm, name):
            return False
        held, facings = Held.measure(arm, name), [_levelled(arm, name, upright)]
        placement = placements(arm, held, region, field, facings, crowded=crowded, shared=shared)[0]
        yield from arm.reach(placement.position + height * _UP, placement.rotation)
    yield from arm.release(name)
    yield from retreat(arm)
    return True


def _from_under(arm: Arm, held: Held, field: HeightField) -> Motion:
    """Sideways, to the nearest place where nothing hangs over what is in the hand, such as an open drawer."""
    here, facing = arm.hand()
    boxes = held.boxes.moved(here, facing)
    if lowest(field, underside(boxes), np.zeros(2, int)) < _OVERHEAD:
        return True
    wide, cells = underside(boxes, _OVERHEAD), np.arange(-_FARTHEST_OUT, _FARTHEST_OUT + 1, 2)
    shifts = sorted(itertools.product(cells, cells), key=lambda shift: shift[0] ** 2 + shift[1] ** 2)
    free = next((shift for shift in shifts if lowest(field, wide, np.array(shift)) < 0.0), None)
    if free is None:
        return False
    return (yield from arm.reach(here + CELL * np.array([*free, 0.0]), facing, tolerance=0.01, limit=40))


def insert(arm: Arm, name: str, target: str, upright: np.ndarray) -> Motion:
    """As `put`, from the side: for a `target` with a roof; False if no way in was found."""
    way = yield from _go_in(arm, name, target, upright)
    if way is None:
        return False
    yield from arm.release(name)
    yield from arm.reach(way.start, way.rotation, tolerance=0.03, limit=40)
    yield from arm.relax()
    return True


def _go_in(arm: Arm, name: str, target: str, upright: np.ndarray) -> Generator[np.ndarray, None, WayIn | None]:
    """The last way that was tried; None if there was none or the object was lost. At the end the hand is in, or out."""
    way = None
    for _ in range(_WAYS):
        held, level = Held.measure(arm, name), _levelled(arm, name, upright)
        region = region_of(arm, target)
        way = way_in(arm, name, held, level, region, opening=arm.opening(), gaps=TIGHTER_GAPS)
        if way is None:
            return None
        yield from arm.travel(way.start, way.rotation, arm.obstacles(name), held.boxes)
        if not holds(arm, name):
            return None
        yield from arm.reach(way.over, way.rotation, tolerance=0.008, speed=0.6)
        if np.linalg.norm(arm.hand()[0] - way.over) < _NEARLY_IN:
            yield from arm.reach(way.end, way.rotation, tolerance=0.006, limit=20)
            return way
        yield from arm.reach(way.start, way.rotation, tolerance=0.03, limit=40)  # ran into something: look again
    return way


def _levelled(arm: Arm, name: str, upright: np.ndarray) -> np.ndarray:
    """The rotation of the hand at which the object in it stands as it stood, or the present one if that is far."""
    leans = arm.scene.object_pose(name)[1] @ upright
    axis, facing = np.cross(leans, _UP), arm.hand()[1]
    sine = float(np.linalg.norm(axis))
    if not _LEVEL < sine < _MOST_LEVELLED or leans[2] < 0.0:
        return facing
    return rotation_about(axis / sine, float(np.arcsin(sine))) @ facing


def press(arm: Arm, name: str, target: str) -> Motion:
    """Press down, with closed fingers, the side on which the object `name` leans on the border of `target`."""
    middle = region_of(arm, target).middle
    corners = arm.boxes(name).corners().reshape(-1, 3)
    top = corners[np.argmax(corners[:, 2])]
    inwards = (middle - top)[:2] / max(float(np.linalg.norm((middle - top)[:2])), 1e-6)
    start = np.array([*(top[:2] + 0.01 * inwards), top[2] + FINGERTIP + 0.015])
    down = start + np.array([*(0.015 * inwards), -0.07])
    yaws = [arm.neutral_yaw(start) + turn for turn in _PUT_TURNS]
    rotations = [arm.leaning(pointing_down(yaw), start) for yaw in yaws]
    beside = arm.obstacles(name)
    # Where a palm has no room lengthwise, beside the front of a cabinet, it may have some crosswise.
    rotation = min(rotations, key=lambda facing: max(0.0, clearance(beside, hand_boxes(0.0).moved(down, facing))))
    arm.grip = CLOSED
    yield from arm.travel(start, rotation, arm.obstacles())
    yield from arm.reach(down, rotation, tolerance=0.01, limit=25)
    return (yield from retreat(arm))


def topple(arm: Arm, name: str, along: np.ndarray) -> Motion:
    """Push over the standing object `name`, with closed fingers against its top, towards `along` `[3]`."""
    low, high = arm.boxes(name).bounds()
    beside = float(np.abs(along) @ (high - low)) / 2 + _RUN_UP
    start = np.array([*((low + high) / 2 - beside * along)[:2], high[2]])
    rotation = arm.leaning(pointing_down(arm.neutral_yaw(start)), start)
    arm.grip = CLOSED
    yield from arm.travel(start, rotation, arm.obstacles())
    yield from arm.reach(start + (_RUN_UP + _TOPPLED) * along, rotation, tolerance=0.01, limit=25)
    return (yield from retreat(arm))


def retreat(arm: Arm, height: float = 0.1) -> Motion:
    """Straight up, away from what was just let go of."""
    here, facing = arm.hand()
    return (yield from arm.reach(here + np.array([0.0, 0.0, height]), facing, tolerance=0.03, limit=20))


def _is_new(grasp: Grasp, failed: list[np.ndarray]) -> bool:
    return all(np.linalg.norm(grasp.position - other) > 0.01 for other in failed)


def push(arm: Arm, name: str, target: str) -> Motion:
    """Push the flat dish `name` over the table to `target` with the open fingers behind it; True if it is there.

    Two points of contact keep it from turning away, as one would not.
    """
    goal = region_of(arm, target).middle
    origin, _ = arm.scene.object_pose(name)
    low, high = arm.boxes(name).bounds()
    radius = float((high - low)[:2].max()) / 2
    way = (goal - origin)[:2] / max(float(np.linalg.norm((goal - origin)[:2])), 1e-6)
    level = float(low[2]) + FINGERTIP + _PUSH_LEVEL
    ahead, rotation = _push_heading(arm, name, way, radius, level)
    arm.grip = OPEN
    start = np.array([*(origin[:2] - (radius + 0.003) * ahead), level])
    yield from arm.travel(start, rotation, arm.obstacles(name))
    for _ in range(_PUSH_STEPS):
        centre, _ = arm.scene.object_pose(name)
        left = float((goal - centre)[:2] @ way)
        if left < 0.005:
            break
        aside = (goal - centre)[:2] - left * way
        spot = centre[:2] - 0.05 * ahead + min(0.05, left + 0.015) * way + aside
        yield arm.act(np.array([*spot, level]), rotation)
    here, facing = arm.hand()
    yield from arm.reach(np.array([*(here[:2] - 0.03 * ahead), here[2] + 0.03]), facing, tolerance=0.02, limit=10)
    yield from retreat(arm)
    return bool(np.linalg.norm((goal - arm.scene.object_pose(name)[0])[:2]) < 0.03)


def _push_heading(arm: Arm, name: str, way: np.ndarray, radius: float, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The direction `[2]` the two fingers look in, nearest to `way` for which the hand has room, and its rotation."""
    origin, _ = arm.scene.object_pose(name)
    shapes = arm.surroundings(name)
    options: list[tuple[int, int, np.ndarray, np.ndarray]] = []
    for tilt, skew in itertools.product(_PUSH_TILTS, _PUSH_SKEWS):
        ahead = rotation_about(np.array([0.0, 0.0, 1.0]), skew)[:2, :2] @ way
        yaw = arm.comfortable(float(np.arctan2(ahead[1], ahead[0])) + np.pi / 2, origin)
        back = rotation_about(np.array([-ahead[1], ahead[0], 0.0]), tilt)  # the wrist goes ahead, the fingers follow
        rotation = back @ pointing_down(yaw)
        start = np.array([*(origin[:2] - (radius + 0.003) * ahead), level])
        descent = [start + np.array([0.0, 0.0, height]) for height in (0.0, 0.04, 0.08, 0.12, 0.16)]
        blocked = sum(overlap(hand_boxes(FULL_OPENING).moved(spot, rotation), shapes, 0.005) for spot in descent)
        options.append((blocked, len(options), ahead, rotation))
    _, _, ahead, rotation = min(options, key=lambda option: option[:2])
    return ahead, rotation

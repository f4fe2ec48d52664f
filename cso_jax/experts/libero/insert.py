"""How to put a held object under a roof, into a microwave or under a shelf: from the side, not from above.

A way in is a straight horizontal path that ends a little above the place at which the object may be let go of. Hand and
object must be free of everything else all along it.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from cso_jax.experts.libero.arm import Arm, hand_boxes
from cso_jax.experts.libero.geometry import CELL, Boxes, height_field, overlap, rotation_about
from cso_jax.experts.libero.place import Held, Region

GAPS = ((0.003, 1.0), (0.006, 0.4), (0.01, 0.0))
"""A hand is some millimetres off its way, so narrow ways cost more."""

TIGHTER_GAPS = ((0.001, 2.0), *GAPS)
"""For what is in the hand already: there it is not quite as it stood."""

_UP = np.array([0.0, 0.0, 1.0])
_RUN_UP = 0.22
_PINCH = 0.01
_CARRY = 0.02  # what hangs in a hand that moves sideways sways
_LOWEST_ROOF = 0.03  # above the middle of a region; what is lower is its floor
_DEEPEST = 0.2
_HEIGHTS = sorted(np.arange(-0.1, 0.1, 2 * CELL), key=abs)
_TURNS = np.radians([0, 30, -30, 60, -60, 90, -90, 120, -120, 150, -150, 180])
_STATIONS = np.linspace(0.0, 1.0, 8)


@dataclasses.dataclass(frozen=True)
class WayIn:
    """From `start` `[3]` straight to `over` `[3]` and down to `end` `[3]` with the hand in `rotation`."""

    start: np.ndarray
    over: np.ndarray
    end: np.ndarray
    rotation: np.ndarray
    cost: float


def is_roofed(arm: Arm, region: Region) -> bool:
    """Whether something fixed lies over the middle of `region`."""
    shapes = arm.surroundings(*arm.scene.objects)
    higher = shapes.only(shapes.corners()[..., 2].min(1) > region.middle[2] + _LOWEST_ROOF)
    if not len(higher):
        return False
    field = height_field(higher, region.middle[:2] - CELL, region.middle[:2] + CELL)
    return bool(np.isfinite(field.top).any())


def way_in(
    arm: Arm,
    name: str,
    held: Held,
    facing: np.ndarray,
    region: Region,
    *,
    opening: float = _PINCH,
    gaps: Sequence[tuple[float, float]] = GAPS,
) -> WayIn | None:
    """The way into `region` for the object `name` that turns the wrist least and leaves room, None if there is none.

    `held` stands upright in a hand of rotation `facing` `[3, 3]` whose fingers are `opening` from the middle. `gaps`:
    metres to everything else, ascending, and what each costs in radians of the wrist.
    """
    shapes = arm.surroundings(name)
    both = hand_boxes(opening).joined(held.boxes)
    ways = _open_sides(region, shapes)
    options: list[tuple[float, int, np.ndarray, np.ndarray, np.ndarray]] = []
    for turn in _TURNS:
        rotation = rotation_about(_UP, turn) @ facing
        yaw = float(np.arctan2(rotation[1, 0], rotation[0, 0]))
        for inwards in ways:
            for spot in _spots(region, inwards):
                wrist = abs(yaw - arm.neutral_yaw(spot - rotation @ held.origin)) % (2 * np.pi)
                cost = min(wrist, 2 * np.pi - wrist) + 2.0 * float(np.linalg.norm(spot - region.middle))
                options.append((cost, len(options), rotation, inwards, spot))
    best: WayIn | None = None
    for cost, _, rotation, inwards, spot in sorted(options, key=lambda option: option[:2]):
        if best is not None and cost >= best.cost:
            break
        for gap, narrow in gaps:
            if best is not None and cost + narrow >= best.cost:
                continue
            heights = _heights(held, rotation, spot, shapes, gap)
            if heights is None:
                break
            end, over = (spot - rotation @ held.origin + height * _UP for height in heights)
            start = over - _RUN_UP * inwards
            path = [end, *(over + share * (start - over) for share in _STATIONS)]
            if any(overlap(both.moved(place, rotation), shapes, gap) for place in path):
                break
            best = WayIn(start, over, end, rotation, cost + narrow)
    return best


def _open_sides(region: Region, shapes: Boxes) -> list[np.ndarray]:
    """The horizontal directions `[3]` in which a finger could be put straight into the middle of `region`."""
    finger = Boxes(region.middle[None], np.eye(3)[None], np.full((1, 3), 0.01))
    directions = [np.array([np.cos(yaw), np.sin(yaw), 0.0]) for yaw in np.radians([90, -90, 0, 180])]
    paths = [[-share * _RUN_UP * inwards for share in _STATIONS] for inwards in directions]
    return [
        inwards
        for inwards, path in zip(directions, paths, strict=True)
        if not any(overlap(finger.moved(shift, np.eye(3)), shapes, 0.0) for shift in path)
    ]


def _spots(region: Region, inwards: np.ndarray) -> list[np.ndarray]:
    """Where the object's origin `[3]` may end: from the middle of `region` towards its open side, and beside that."""
    depth = max(0.0, float(np.abs(inwards[:2]) @ region.half) - 0.025)
    side = np.array([-inwards[1], inwards[0], 0.0])
    width = max(0.0, float(np.abs(side[:2]) @ region.half) - 0.025)
    return [
        region.middle - share * depth * inwards + aside * width * side
        for share in (0.0, 0.5, 1.0)
        for aside in (0.0, 0.4, -0.4)
    ]


def _heights(
    held: Held, rotation: np.ndarray, spot: np.ndarray, shapes: Boxes, gap: float
) -> tuple[float, float] | None:
    """Metres above `spot` at which the object hangs `gap` above what is under it, and at which it is best carried in.

    None if it has no room.
    """
    place = spot - rotation @ held.origin

    def free(height: float) -> bool:
        return not overlap(held.boxes.moved(place + height * _UP, rotation), shapes, gap)

    # A region's middle is not where an object's origin comes to rest: the nearest height with room, and down from it.
    lowest = next((height for height in _HEIGHTS if free(height)), None)
    if lowest is None:
        return None
    while lowest > -_DEEPEST and free(lowest - CELL):
        lowest -= CELL
    carried = lowest
    while carried < lowest + _CARRY and free(carried + CELL):
        carried += CELL
    return lowest, carried

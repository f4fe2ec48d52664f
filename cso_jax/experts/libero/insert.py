"""How to put a held object under a roof, into a microwave or under a shelf: from the side, not from above.

A way in is a straight horizontal path at the end of which the object may be let go of. Hand and object must be free of
everything else all along it.
"""

import dataclasses

import numpy as np

from cso_jax.experts.libero.arm import Arm, hand_boxes
from cso_jax.experts.libero.geometry import CELL, Boxes, height_field, overlap, rotation_about
from cso_jax.experts.libero.place import Held, Region

_UP = np.array([0.0, 0.0, 1.0])
_RUN_UP = 0.22
_GAP = 0.003
_PINCH = 0.01
_LOWEST_ROOF = 0.03  # above the middle of a region; what is lower is its floor
_DEEPEST = 0.2
_HEIGHTS = sorted(np.arange(-0.1, 0.1, 2 * CELL), key=abs)
_TURNS = np.radians([0, 30, -30, 60, -60, 90, -90, 120, -120, 150, -150, 180])
_STATIONS = np.linspace(0.0, 1.0, 8)


@dataclasses.dataclass(frozen=True)
class WayIn:
    """From `start` `[3]` straight to `end` `[3]` with the hand in `rotation`."""

    start: np.ndarray
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
    arm: Arm, name: str, held: Held, facing: np.ndarray, region: Region, *, opening: float = _PINCH
) -> WayIn | None:
    """The way into `region` for the object `name` that turns the wrist least, None if there is none.

    `held` stands upright in a hand of rotation `facing` `[3, 3]` whose fingers are `opening` from the middle.
    """
    shapes = arm.surroundings(name)
    both = hand_boxes(opening).joined(held.boxes)
    best: WayIn | None = None
    for turn in _TURNS:
        rotation = rotation_about(_UP, turn) @ facing
        for inwards in _directions():
            for spot in _spots(region, inwards):
                end = _lowered(held, rotation, spot, shapes)
                if end is None:
                    continue
                yaw = float(np.arctan2(rotation[1, 0], rotation[0, 0]))
                cost = abs(yaw - arm.neutral_yaw(end)) % (2 * np.pi)
                cost = min(cost, 2 * np.pi - cost) + 2.0 * float(np.linalg.norm(spot - region.middle))
                if best is not None and cost >= best.cost:
                    continue
                start = end - _RUN_UP * inwards
                path = [end + share * (start - end) for share in _STATIONS]
                if not any(overlap(both.moved(place, rotation), shapes, _GAP) for place in path):
                    best = WayIn(start, end, rotation, cost)
    return best


def _directions() -> list[np.ndarray]:
    return [np.array([np.cos(yaw), np.sin(yaw), 0.0]) for yaw in np.radians([90, -90, 0, 180])]


def _spots(region: Region, inwards: np.ndarray) -> list[np.ndarray]:
    """Where the object's origin `[3]` may end, from the middle of `region` towards its open side."""
    depth = max(0.0, float(np.abs(inwards[:2]) @ region.half) - 0.025)
    return [region.middle - share * depth * inwards for share in (0.0, 0.5, 1.0)]


def _lowered(held: Held, rotation: np.ndarray, spot: np.ndarray, shapes: Boxes) -> np.ndarray | None:
    """The hand's place `[3]` at which the object hangs just above what is under `spot`, None if it has no room."""
    place = spot - rotation @ held.origin

    def free(height: float) -> bool:
        return not overlap(held.boxes.moved(place + height * _UP, rotation), shapes, _GAP)

    # A region's middle is not where an object's origin comes to rest: the nearest height with room, and down from it.
    height = next((height for height in _HEIGHTS if free(height)), None)
    if height is None:
        return None
    while height > -_DEEPEST and free(height - CELL):
        height -= CELL
    return place + height * _UP

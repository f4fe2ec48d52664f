"""Where to put a held object down: the lowest free place within a region that the goal accepts."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from cso_jax.experts.libero.arm import Arm, hand_boxes
from cso_jax.experts.libero.geometry import CELL, Boxes, HeightField, height_field, lowest

_MARGIN = 0.004
_BESIDE = 0.016  # between two things on one surface: a hand is some millimetres off, and what hangs in it leans


@dataclasses.dataclass(frozen=True)
class Region:
    """Where the object's origin may come to rest: rectangle around `middle` `[3]` with half sides `half` `[2]`.

    What is higher than `top` is above it, not in it.
    """

    middle: np.ndarray
    half: np.ndarray
    top: float = np.inf

    def is_under(self, place: np.ndarray) -> bool:
        """Whether the region is straight below `place` `[3]`."""
        return bool((np.abs(place - self.middle)[:2] < self.half).all() and place[2] > self.top)


@dataclasses.dataclass(frozen=True)
class Placement:
    """A pose of the hand at which to let go, and what it costs."""

    position: np.ndarray
    rotation: np.ndarray
    cost: float


@dataclasses.dataclass(frozen=True)
class Held:
    """What is in the hand, in the hand's frame: its boxes, and the position `[3]` of its origin."""

    boxes: Boxes
    origin: np.ndarray
    rotation: np.ndarray

    @classmethod
    def measure(cls, arm: Arm, name: str) -> "Held":
        """Look at the object `name` in the hand now."""
        return cls.at(arm, name, *arm.hand())

    @classmethod
    def at(cls, arm: Arm, name: str, here: np.ndarray, facing: np.ndarray) -> "Held":
        """What it would be if a hand at `here` `[3]`, turned by `facing` `[3, 3]`, took the object as it lies now."""
        origin, rotation = arm.scene.object_pose(name)
        return cls(arm.boxes(name).seen_from(here, facing), facing.T @ (origin - here), facing.T @ rotation)


def region_of(arm: Arm, target: str) -> Region:
    """The region of an object, fixture or named site."""
    sites = arm.scene.env.object_sites_dict
    if target not in sites:
        origin, _ = arm.scene.object_pose(target)
        return Region(origin, np.zeros(2))
    site = arm.scene.data.site(target)
    size = np.abs(site.xmat.reshape(3, 3) @ np.resize(np.asarray(sites[target].size, float), 3))
    return Region(site.xpos.copy(), size[:2], float(site.xpos[2] + size[2]))


def placements(
    arm: Arm,
    held: Held,
    region: Region,
    field: HeightField,
    facings: Sequence[np.ndarray],
    *,
    crowded: bool = False,
    shared: bool = False,
) -> list[Placement]:
    """Poses at which to let go of `held` so that its origin falls into `region`, best first.

    `field` holds everything but the robot and the object; `facings` are the rotations of the hand to try, the wanted
    one first. In a `crowded` region, where more is to come, half of the middle is left free; in a `shared` one, where
    something stands already, the object should not come near that.
    """
    moving = held.boxes.joined(hand_boxes(arm.opening() + 0.008))
    low, high = held.boxes.moved(np.zeros(3), facings[0]).bounds()
    aside = float((high - low)[:2].min()) / 2 + _BESIDE / 2 if crowded else 0.0
    found = []
    for rank, rotation in enumerate(facings):
        start = np.array([*(region.middle - rotation @ held.origin)[:2], 0.0])
        whole, alone = (underside(boxes.moved(start, rotation)) for boxes in (moving, held.boxes))
        wide = underside(held.boxes.moved(start, rotation), _BESIDE) if shared else alone
        for shift in _shifts(region):
            lift = lowest(field, whole, shift) + _MARGIN
            rest = lowest(field, alone, shift)
            offset = np.array([*(CELL * shift), 0.0])
            away = abs(float(np.linalg.norm(offset)) - aside)
            cost = 1.5 * (lift - rest) + 4.0 * rest + away + 0.06 * (rank > 0)
            if shared:
                cost += lowest(field, wide, shift) - rest
            found.append(Placement(start + offset + np.array([0.0, 0.0, lift]), rotation, cost))
    return sorted(found, key=lambda placement: placement.cost)


def underside(boxes: Boxes, grown: float = 0.0) -> HeightField:
    """The field of `boxes` alone, `grown` metres larger sideways."""
    low, high = boxes.bounds()
    return height_field(boxes, low - CELL - grown, high + CELL + grown, grown=grown)


def _shifts(region: Region) -> np.ndarray:
    """Whole cells `[K, 2]` from the middle of `region` that keep 1.5 cm from its border, every second one if many."""
    reach = np.floor(np.maximum(region.half - 0.015, 0.0) / CELL).astype(int)
    step = 1 if reach.max() < 14 else 2
    axes = [np.unique([*np.arange(0, side + 1, step), *-np.arange(0, side + 1, step)]) for side in reach]
    return np.array([(x, y) for x in axes[0] for y in axes[1]])

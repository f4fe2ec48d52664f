"""Where to take hold of an object from above: by its body, by its rim, or by its handle."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from cso_jax.experts.libero.arm import FULL_OPENING, Arm, hand_boxes, pointing_down
from cso_jax.experts.libero.geometry import CELL, HeightField, clearance, height_field, rotation_about

MUGS = frozenset({"porcelain_mug", "white_yellow_mug", "red_coffee_mug"})
"""Categories with a rim and a handle."""

RIM = MUGS | {"akita_black_bowl", "white_bowl", "glazed_rim_porcelain_ramekin"}
"""Categories that are held by their wall, one finger inside."""

FLAT = frozenset({"plate"})
"""Categories that are too flat to be picked up: they are pushed."""

HANDLE = frozenset({"chefmate_8_frypan", "moka_pot"})
"""Categories that are held by what sticks out of them."""

_MARGIN = 0.002
_SKEWS = (0.3, -0.3, 0.6, -0.6)
_TILTS = (0.25, -0.25, 0.45, -0.45)
_ASIDES = (0.02, -0.02)
_LEANS = (0.0, 0.4, -0.4, 0.8, -0.8, 1.2, -1.2)
_AXES = np.eye(3)[:2]
_DEEPEST = 0.027
_OPENINGS = (FULL_OPENING, 0.026, 0.016)


@dataclasses.dataclass(frozen=True)
class Grasp:
    """A pose of the hand just before closing, the opening of each finger on the way there, and what it costs."""

    position: np.ndarray
    rotation: np.ndarray
    opening: float
    cost: float


@dataclasses.dataclass(frozen=True)
class _Spot:
    """A place to take hold of: middle between the fingers, closing direction, top and thickness there."""

    middle: np.ndarray
    yaw: float
    top: float
    thickness: float
    cost: float


def category(name: str) -> str:
    """The BDDL category of an object: its name without the running number."""
    return re.sub(r"_\d+$", "", name)


def grasps(
    arm: Arm, name: str, field: HeightField, towards: np.ndarray | None = None, *, by_handle: bool = False
) -> list[Grasp]:
    """Ways to pick up the object `name`, best first; `field` holds everything around it, itself included.

    `towards` `[>= 2]` is where it will be taken: the wrist must not be turned too far there either. `by_handle`: what
    has a rim and a handle is held by the handle, and the hand may lean far over.
    """
    boxes = arm.boxes(name)
    low, high = boxes.bounds()
    own = height_field(boxes, low - CELL, high + CELL)
    kind = category(name)
    if by_handle and kind in MUGS:
        rim, _ = _cells(own, float(own.top.max()) - 0.015)
        spots = _handle_spots(own, (rim.min(0) + rim.max(0)) / 2)
    elif kind in HANDLE:
        spots = _handle_spots(own, arm.scene.object_pose(name)[0])
    elif kind in RIM:
        spots = _rim_spots(own, arm.scene.object_pose(name)[0])
    else:
        spots = _body_spots(own)
    origin = arm.scene.object_pose(name)[0][:2]
    if by_handle:
        return sorted(
            _feasible(arm, spots, origin, field, towards, _LEANS, along_closing=True), key=lambda grasp: grasp.cost
        )
    found = _feasible(arm, spots, origin, field, towards, (0.0,))
    if kind in RIM and not found:
        spots = [dataclasses.replace(s, yaw=s.yaw + skew, cost=abs(skew)) for skew in _SKEWS for s in spots]
        found = _feasible(arm, spots, origin, field, towards, (0.0,))
    if kind not in RIM | HANDLE and not found:
        found = _feasible(
            arm, [s for aside in _ASIDES for s in _body_spots(own, aside)], origin, field, towards, (0.0,)
        )
    if not found:
        found = _feasible(arm, spots, origin, field, towards, _TILTS)
    return sorted(found, key=lambda grasp: grasp.cost)


def _feasible(
    arm: Arm,
    spots: list[_Spot],
    origin: np.ndarray,
    field: HeightField,
    towards: np.ndarray | None,
    tilts: Sequence[float],
    *,
    along_closing: bool = False,
) -> list[Grasp]:
    found = []
    for spot in spots:
        end = None if towards is None else towards[:2] + spot.middle - origin
        closing = np.array([np.cos(spot.yaw), np.sin(spot.yaw), 0.0])
        axes = (closing,) if along_closing else _AXES[: len(tilts)]
        found += [_grasp(arm, spot, field, end, axis, tilt) for tilt in tilts for axis in axes]
    return [grasp for grasp in found if grasp is not None]


def _cells(field: HeightField, above: float) -> tuple[np.ndarray, np.ndarray]:
    """Middles `[K, 2]` and tops `[K]` of the cells that reach `above`."""
    index = np.argwhere(field.top > above)
    return field.corner + CELL * index, field.top[index[:, 0], index[:, 1]]


def _body_spots(own: HeightField, aside: float = 0.0) -> list[_Spot]:
    """Across the middle of the top, or `aside` metres from it towards an end."""
    top = float(own.top.max())
    places, _ = _cells(own, top - 0.03)
    middle = (places.min(0) + places.max(0)) / 2
    spots = []
    for yaw in np.linspace(0.0, np.pi, 36, endpoint=False):
        along = (places - middle) @ np.array([np.cos(yaw), np.sin(yaw)])
        side = np.array([-np.sin(yaw), np.cos(yaw)])
        across = (places - middle) @ side - aside
        slab = along[np.abs(across) < 0.012]
        if len(slab) == 0:
            continue
        width = float(slab.max() - slab.min())
        centre = middle + np.array([np.cos(yaw), np.sin(yaw)]) * (slab.max() + slab.min()) / 2 + aside * side
        # The true width of a box is the least over the yaws: a millimetre too wide costs as much as 3 degrees of turn.
        spots.append(_Spot(centre, yaw, top, width, 50.0 * width))
    return spots


def _rim_spots(own: HeightField, origin: np.ndarray) -> list[_Spot]:
    top = float(own.top.max())
    places, tops = _cells(own, top - 0.015)
    rays = places - origin[:2]
    angles, radii = np.arctan2(rays[:, 1], rays[:, 0]), np.linalg.norm(rays, axis=1)
    spots = []
    for angle in np.linspace(-np.pi, np.pi, 32, endpoint=False):
        near = np.abs((angles - angle + np.pi) % (2 * np.pi) - np.pi) < 0.1
        if not near.any():
            continue
        rim = near & (tops > tops[near].max() - 0.003)
        radius = float(np.median(radii[rim]))
        middle = origin[:2] + radius * np.array([np.cos(angle), np.sin(angle)])
        spots.append(_Spot(middle, angle, float(tops[rim].max()), 0.01, 0.0))
    return spots


def _handle_spots(own: HeightField, origin: np.ndarray) -> list[_Spot]:
    places, tops = _cells(own, -np.inf)
    rays = places - origin[:2]
    reach = np.linalg.norm(rays, axis=1)
    far = rays[np.argmax(reach)] / reach.max()
    yaw = float(np.arctan2(far[1], far[0]))
    side = np.array([-far[1], far[0]])
    along, across = rays @ far, rays @ side
    spots = []
    for station in np.arange(reach.max() - 0.012, 0.4 * reach.max(), -0.01):
        near = np.abs(along - station) < 0.01
        width = float(across[near].max() - across[near].min())
        middle = origin[:2] + station * far + side * (across[near].max() + across[near].min()) / 2
        if width < 0.06:
            off = abs(station / reach.max() - 0.85)
            spots.append(_Spot(middle, yaw + np.pi / 2, float(tops[near].max()), width, off))
    return spots


def _grasp(
    arm: Arm, spot: _Spot, field: HeightField, towards: np.ndarray | None, axis: np.ndarray, tilt: float
) -> Grasp | None:
    """The grasp at `spot` with the widest opening that has room, the hand tilted about `axis`; None if none has."""
    yaw = arm.comfortable(spot.yaw, spot.middle)
    turned = abs(yaw - arm.neutral_yaw(spot.middle) - arm.style.turn)
    stretch = arm.stretch(spot.middle)
    if towards is not None:
        stretch = max(stretch, arm.stretch(towards))
        turned = max(turned, abs(yaw - arm.neutral_yaw(towards)))
    rotation = rotation_about(axis, tilt) @ arm.leaning(pointing_down(yaw), spot.middle, inwards=False)
    for opening in _OPENINGS:
        if spot.thickness / 2 + 0.004 > opening:
            continue
        start = np.array([*spot.middle, spot.top])
        lift = clearance(field, hand_boxes(opening).moved(start, rotation)) + _MARGIN
        deep = max(lift, -_DEEPEST)
        if deep < -0.003:
            awkward = turned + abs(tilt) + 0.3 * _OPENINGS.index(opening)
            shallow = 20.0 * max(0.0, deep + 0.015)
            cost = spot.cost + awkward + shallow + 10.0 * stretch
            return Grasp(start + np.array([0.0, 0.0, deep]), rotation, opening, cost)
    return None

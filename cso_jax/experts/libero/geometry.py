"""Collision geometry of a LIBERO scene as boxes, and height fields over the table: what a hand from above may hit.

Nearly every collision shape of LIBERO is a box; the few others are replaced by their bounding box. Positions are in
metres and in the world frame unless a docstring says otherwise.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

CELL = 0.004
"""Side of a height-field cell."""

_PLANE = 0
_BOX_CORNERS = np.array([[x, y, z] for x in (-1.0, 1.0) for y in (-1.0, 1.0) for z in (-1.0, 1.0)])


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Oriented boxes: `centres` `[N, 3]`, `axes` `[N, 3, 3]` (columns are the box's axes), `halves` `[N, 3]`."""

    centres: np.ndarray
    axes: np.ndarray
    halves: np.ndarray

    def __len__(self) -> int:
        return len(self.centres)

    def moved(self, position: np.ndarray, rotation: np.ndarray) -> "Boxes":
        """The same boxes after x -> `rotation` x + `position`."""
        return Boxes(self.centres @ rotation.T + position, rotation @ self.axes, self.halves)

    def seen_from(self, position: np.ndarray, rotation: np.ndarray) -> "Boxes":
        """The same boxes in the frame that stands at `position` with the axes `rotation`: undoes `moved`."""
        return self.moved(-rotation.T @ position, rotation.T)

    def only(self, chosen: np.ndarray) -> "Boxes":
        """Those that a boolean or integer index picks."""
        return Boxes(self.centres[chosen], self.axes[chosen], self.halves[chosen])

    def corners(self) -> np.ndarray:
        """`[N, 8, 3]`."""
        return self.centres[:, None] + np.einsum("nij,nkj->nki", self.axes, _BOX_CORNERS * self.halves[:, None])

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest coordinates `[3]` of all boxes together."""
        corners = self.corners().reshape(-1, 3)
        return corners.min(0), corners.max(0)


def boxes_of(model: Any, data: Any, geoms: Iterable[int]) -> Boxes:
    """The collision shapes `geoms` of a MuJoCo model where they are now; planes are left out."""
    chosen = np.array([geom for geom in geoms if model.geom_type[geom] != _PLANE], int)
    axes = data.geom_xmat[chosen].reshape(-1, 3, 3)
    centres = data.geom_xpos[chosen] + np.einsum("nij,nj->ni", axes, model.geom_aabb[chosen, :3])
    return Boxes(centres, axes, model.geom_aabb[chosen, 3:].copy())


def colliding_geoms(model: Any, bodies: Iterable[int]) -> list[int]:
    """Geoms of `bodies` that take part in collisions."""
    wanted = set(bodies)
    solid = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
    return [geom for geom in range(model.ngeom) if solid[geom] and int(model.geom_bodyid[geom]) in wanted]


def body_tree(model: Any, root: int) -> list[int]:
    """`root` and every body below it."""
    tree = {root}
    for body in range(root + 1, model.nbody):  # a parent always comes before its children
        if int(model.body_parentid[body]) in tree:
            tree.add(body)
    return sorted(tree)


@dataclasses.dataclass(frozen=True)
class HeightField:
    """Highest and lowest point of some boxes over each cell of a grid; -inf and +inf where there is nothing.

    Cell (i, j) has its centre at `corner` + `CELL` * (i, j); `top` and `bottom` are `[X, Y]`.
    """

    corner: np.ndarray
    top: np.ndarray
    bottom: np.ndarray

    def highest(self, low: np.ndarray, high: np.ndarray) -> float:
        """Highest top within the rectangle from `low` `[2]` to `high` `[2]`, -inf if it is empty."""
        first = np.clip(np.floor((low - self.corner) / CELL).astype(int), 0, self.top.shape)
        last = np.clip(np.ceil((high - self.corner) / CELL).astype(int) + 1, 0, self.top.shape)
        part = self.top[first[0] : last[0], first[1] : last[1]]
        return float(part.max()) if part.size else -np.inf


def height_field(
    boxes: Boxes, low: np.ndarray, high: np.ndarray, *, floor: float = -np.inf, grown: float = CELL / 2
) -> HeightField:
    """The field of `boxes` over the rectangle from `low` `[2]` to `high` `[2]`; `floor` is for empty cells.

    A line that passes within `grown` metres of a box counts, else thin walls would fall between the cells.
    """
    corner = np.floor(low[:2] / CELL) * CELL
    shape = tuple(np.ceil((high[:2] - corner) / CELL).astype(int) + 1)
    top, bottom = np.full(shape, floor), np.full(shape, np.inf)
    corners = boxes.corners()[..., :2]
    first = np.floor((corners.min(1) - corner) / CELL).astype(int)
    last = np.ceil((corners.max(1) - corner) / CELL).astype(int) + 1
    for index in range(len(boxes)):
        i0, j0 = np.clip(first[index], 0, shape)
        i1, j1 = np.clip(last[index], 0, shape)
        if i0 >= i1 or j0 >= j1:
            continue
        x = corner[0] + CELL * np.arange(i0, i1)
        y = corner[1] + CELL * np.arange(j0, j1)
        low_z, high_z = _vertical_span(boxes.centres[index], boxes.axes[index], boxes.halves[index], x, y, grown)
        hit = low_z <= high_z
        window = (slice(i0, i1), slice(j0, j1))
        top[window] = np.where(hit, np.maximum(top[window], high_z), top[window])
        bottom[window] = np.where(hit, np.minimum(bottom[window], low_z), bottom[window])
    return HeightField(corner, top, bottom)


def _vertical_span(
    centre: np.ndarray, axes: np.ndarray, half: np.ndarray, x: np.ndarray, y: np.ndarray, grown: float
) -> tuple[np.ndarray, np.ndarray]:
    """Where the vertical lines over the grid `x`, `y` enter and leave one box; entering above leaving is a miss."""
    half = half + grown * (1.0 - np.abs(axes[2]))  # sideways only: heights stay true
    offset = np.stack(np.broadcast_arrays((x - centre[0])[:, None], (y - centre[1])[None, :]), -1)
    local = offset @ axes[:2]
    slope = axes[2]
    low, high = np.full(local.shape[:2], -np.inf), np.full(local.shape[:2], np.inf)
    for axis in range(3):
        if abs(slope[axis]) < 1e-6:
            outside = np.abs(local[..., axis]) > half[axis]
            high = np.where(outside, -np.inf, high)
            continue
        ends = np.stack([(-half[axis] - local[..., axis]) / slope[axis], (half[axis] - local[..., axis]) / slope[axis]])
        low, high = np.maximum(low, ends.min(0)), np.minimum(high, ends.max(0))
    return low + centre[2], high + centre[2]


def clearance(obstacles: HeightField, moving: Boxes) -> float:
    """How far `moving` must be lifted (negative: may be lowered) to stand just above `obstacles`; -inf if free."""
    low, high = moving.bounds()
    return lowest(obstacles, height_field(moving, low - CELL, high + CELL), np.zeros(2, int))


def lowest(obstacles: HeightField, moving: HeightField, cells: np.ndarray) -> float:
    """`clearance` of the field `moving` after it was shifted by whole `cells` `[2]`."""
    shift = np.rint((moving.corner - obstacles.corner) / CELL).astype(int) + cells
    first = np.maximum(shift, 0)
    last = np.minimum(shift + moving.top.shape, obstacles.top.shape)
    if (first >= last).any():
        return -np.inf
    over = obstacles.top[first[0] : last[0], first[1] : last[1]]
    start, stop = first - shift, last - shift
    return float((over - moving.bottom[start[0] : stop[0], start[1] : stop[1]]).max())


def overlap(moving: Boxes, obstacles: Boxes, margin: float = 0.0) -> bool:
    """Whether any point of `moving` (sampled every 8 mm) is within `margin` of `obstacles`."""
    points = []
    for centre, axes, half in zip(moving.centres, moving.axes, moving.halves, strict=True):
        sides = [np.linspace(-side, side, 1 + int(np.ceil(2 * side / 0.008))) for side in half]
        points.append(np.stack(np.meshgrid(*sides), -1).reshape(-1, 3) @ axes.T + centre)
    cloud = np.concatenate(points)
    low, high = cloud.min(0) - margin, cloud.max(0) + margin
    corners = obstacles.corners()
    near = ((corners.max(1) > low) & (corners.min(1) < high)).all(1)
    for centre, axes, half in zip(obstacles.centres[near], obstacles.axes[near], obstacles.halves[near], strict=True):
        if (np.abs((cloud - centre) @ axes) < half + margin).all(1).any():
            return True
    return False


def rotation_about(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rotation matrix `[3, 3]` by `angle` about the unit vector `axis`."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """The axis times the angle `[3]` of a rotation matrix."""
    cosine = np.clip((np.trace(rotation) - 1.0) / 2.0, -1.0, 1.0)
    angle = float(np.arccos(cosine))
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    if angle < 1e-6:
        return skew / 2.0
    if np.pi - angle < 1e-3:
        column = int(np.argmax(np.diag(rotation)))
        axis = rotation[:, column] + np.eye(3)[column]
        return angle * axis / np.linalg.norm(axis)
    return angle * skew / (2.0 * np.sin(angle))

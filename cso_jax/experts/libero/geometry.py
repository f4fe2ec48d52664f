"""Collision geometry of a LIBERO scene as boxes, and height fields over the table: what a hand from above may hit.

Nearly every collision shape of LIBERO is a box; the few others are replaced by their bounding box. Positions are in
metres and in the world frame unless a docstring says otherwise.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numba
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

    def joined(self, other: "Boxes") -> "Boxes":
        """These and those of `other`."""
        return Boxes(
            np.concatenate([self.centres, other.centres]),
            np.concatenate([self.axes, other.axes]),
            np.concatenate([self.halves, other.halves]),
        )

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
    more = max(0.0, grown - CELL)
    first = np.clip(np.floor((corners.min(1) - more - corner) / CELL).astype(int), 0, shape)
    last = np.clip(np.ceil((corners.max(1) + more - corner) / CELL).astype(int) + 1, 0, shape)
    _fill(top, bottom, corner, first, last, boxes.centres, boxes.axes, boxes.halves, grown)
    return HeightField(corner, top, bottom)


@numba.njit(cache=True)
def _fill(top, bottom, corner, first, last, centres, axes, halves, grown):  # type: ignore[no-untyped-def]
    """Raise `top` and lower `bottom` to where the vertical lines over the cells leave and enter each box.

    The cells that a box can be over are those from `first` to before `last`, `[N, 2]`.
    """
    for box in range(len(centres)):
        centre, across = centres[box], axes[box]
        half = halves[box] + grown * (1.0 - np.abs(across[2]))  # sideways only: heights stay true
        for i in range(first[box, 0], last[box, 0]):
            x = corner[0] + CELL * i - centre[0]
            for j in range(first[box, 1], last[box, 1]):
                y = corner[1] + CELL * j - centre[1]
                low, high = -np.inf, np.inf
                for axis in range(3):
                    local, slope = x * across[0, axis] + y * across[1, axis], across[2, axis]
                    if abs(slope) >= 1e-6:
                        one, other = (-half[axis] - local) / slope, (half[axis] - local) / slope
                        low, high = max(low, min(one, other)), min(high, max(one, other))
                    elif abs(local) > half[axis]:
                        high = -np.inf
                if low <= high:
                    top[i, j] = max(top[i, j], high + centre[2])
                    bottom[i, j] = min(bottom[i, j], low + centre[2])


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
    start, stop = first - shift, last - shift
    over = obstacles.top[first[0] : last[0], first[1] : last[1]]
    return float(_greatest_difference(over, moving.bottom[start[0] : stop[0], start[1] : stop[1]]))


@numba.njit(cache=True)
def _greatest_difference(upper, lower):  # type: ignore[no-untyped-def]
    greatest = -np.inf
    for i in range(upper.shape[0]):
        for j in range(upper.shape[1]):
            greatest = max(greatest, upper[i, j] - lower[i, j])
    return greatest


def overlap(moving: Boxes, obstacles: Boxes, margin: float = 0.0) -> bool:
    """Whether any point of `moving` (sampled every 8 mm) is within `margin` of `obstacles`."""
    return bool(
        _meet(moving.centres, moving.axes, moving.halves, obstacles.centres, obstacles.axes, obstacles.halves, margin)
    )


@numba.njit(cache=True)
def _meet(centres, axes, halves, other_centres, other_axes, other_halves, margin):  # type: ignore[no-untyped-def]
    """As `overlap`, from the fields of both."""
    for one in range(len(centres)):
        counts = 1 + np.ceil(2 * halves[one] / 0.008).astype(np.int64)
        radius = np.sqrt((halves[one] ** 2).sum())
        for other in range(len(other_centres)):
            between = centres[one] - other_centres[other]
            reach = radius + np.sqrt(((other_halves[other] + margin) ** 2).sum())
            if (between**2).sum() > reach**2:
                continue
            # The sampled point is centre + axes @ offset, seen from the middle of the other box along its sides.
            middle = other_axes[other].T @ between
            turn = other_axes[other].T @ axes[one]
            limit = other_halves[other] + margin
            for i in range(counts[0]):
                x = halves[one, 0] * (2.0 * i / max(counts[0] - 1, 1) - 1.0)
                for j in range(counts[1]):
                    y = halves[one, 1] * (2.0 * j / max(counts[1] - 1, 1) - 1.0)
                    for k in range(counts[2]):
                        z = halves[one, 2] * (2.0 * k / max(counts[2] - 1, 1) - 1.0)
                        inside = True
                        for axis in range(3):
                            along = middle[axis] + turn[axis, 0] * x + turn[axis, 1] * y + turn[axis, 2] * z
                            inside = inside and abs(along) < limit[axis]
                        if inside:
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

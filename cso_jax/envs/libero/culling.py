"""Leaving out of an image what its camera cannot see: the same pixels, fewer triangles.

MuJoCo draws every geom for every camera. LIBERO's cameras see a part of the scene: most of the arm, which has half of
all triangles, is above the frame of one camera and behind the other.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

_HIDDEN_GROUP = 5
_MARGIN = 1e-3
"""Metres added to every side of a bounding box."""


@contextlib.contextmanager
def culled(model: Any, data: Any, camera: str, *, reflections: bool) -> Iterator[None]:
    """Within this context, geoms that `camera` (of a square image) cannot see are in a group that is not drawn.

    Geoms count by their bounding boxes, and with `reflections` as seen in each mirror too. `model` and `data` are
    MuJoCo's; the group has no meaning for the physics and is put back. Raises KeyError for an unknown camera.
    """
    groups = model.geom_group
    before = groups.copy()
    groups[~_seen(model, data, model.camera(camera).id, reflections)] = _HIDDEN_GROUP
    try:
        yield
    finally:
        groups[:] = before


def _seen(model: Any, data: Any, camera: int, reflections: bool) -> np.ndarray:
    axes = data.geom_xmat.reshape(-1, 3, 3)
    centres = data.geom_xpos + np.einsum("gij,gj->gi", axes, model.geom_aabb[:, :3])
    sizes = model.geom_aabb[:, 3:] + _MARGIN
    seen = _inside(model, data, camera, centres, axes, sizes) | (model.geom_rbound == 0)  # planes have no end
    for point, normal in _mirrors(model, data) if reflections else ():
        flip = np.eye(3) - 2 * np.outer(normal, normal)
        seen |= _inside(model, data, camera, point + (centres - point) @ flip, flip @ axes, sizes)
    return seen


def _inside(model: Any, data: Any, camera: int, centres: np.ndarray, axes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which boxes `[G]` reach inside all planes that bound what the camera sees; it looks along its negative z axis."""
    half = np.radians(model.cam_fovy[camera]) / 2
    inwards = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 0]]) * np.cos(half)
    inwards[:, 2] = [*[-np.sin(half)] * 4, -1]
    planes = inwards @ data.cam_xmat[camera].reshape(3, 3).T
    reach = np.einsum("gki,gi->gk", np.abs(planes @ axes), sizes)
    return ((centres - data.cam_xpos[camera]) @ planes.T + reach > 0).all(axis=1)


def _mirrors(model: Any, data: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Point and normal of the reflecting surfaces: planes, and the upper sides of boxes."""
    import mujoco

    material, kind = model.geom_matid, model.geom_type
    flat = (kind == mujoco.mjtGeom.mjGEOM_PLANE) | (kind == mujoco.mjtGeom.mjGEOM_BOX)
    for geom in np.flatnonzero(flat & (material >= 0) & (model.geom_group != 0)):
        if model.mat_reflectance[material[geom]] == 0:
            continue
        normal = data.geom_xmat[geom].reshape(3, 3)[:, 2]
        height = 0.0 if model.geom_rbound[geom] == 0 else model.geom_size[geom, 2]
        yield data.geom_xpos[geom] + height * normal, normal

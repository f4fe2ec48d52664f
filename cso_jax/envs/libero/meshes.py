"""Fewer triangles: visual meshes simplified while a renderer uploads them, or left out where nothing is drawn.

LIBERO's scenes have 190,000 to 275,000 visual triangles, half of them in the arm. Where they are drawn in software, an
image of 128 pixels costs as much as its triangles.
"""

import contextlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import Any

import numpy as np


def without_looks(model: str) -> str:
    """A model (XML) whose visual geoms are points instead of meshes and have no material, with the assets still used.

    Bodies, joints and all that touches stay as they are, and every geom keeps its name and number.
    """
    root = ElementTree.fromstring(model)
    for geom in root.iter("geom"):
        if geom.get("contype") == geom.get("conaffinity") == "0":
            geom.attrib.pop("material", None)
            if geom.attrib.pop("mesh", None) is not None:
                geom.attrib |= {"type": "sphere", "size": "0.001"}
    (assets,) = root.findall("asset")
    for kind, referrers in (("mesh", root.iter("geom")), ("material", root.iter()), ("texture", root.iter("material"))):
        used = {element.get(kind) for element in referrers}
        for element in assets.findall(kind):
            if element.get("name") not in used and element.get("type") != "skybox":
                assets.remove(element)
    return ElementTree.tostring(root, encoding="unicode")


@contextlib.contextmanager
def simplified(model: Any, triangles: int) -> Iterator[None]:
    """Within this context `model` (mujoco.MjModel) has meshes of about `triangles` triangles each, 0 for all.

    A renderer copies the meshes when it is made; afterwards the model is as it was before, bit for bit.
    Raises ModuleNotFoundError, with the command to install, if the library meshoptimizer is needed and not there.
    """
    if triangles == 0:
        yield
        return
    library = _library()
    names = ("mesh_facenum", "mesh_face", "mesh_facenormal", "mesh_facetexcoord")
    before = {name: getattr(model, name).copy() for name in names}
    try:
        for mesh in np.flatnonzero(model.mesh_facenum > triangles):
            _simplify(library, model, int(mesh), triangles)
        yield
    finally:
        for name, values in before.items():
            getattr(model, name)[:] = values


def _simplify(library: Any, model: Any, mesh: int, triangles: int) -> None:
    start, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    block = slice(start, start + count)
    corners = np.stack([model.mesh_face[block], model.mesh_facetexcoord[block], model.mesh_facenormal[block]], -1)
    corners = corners.reshape(-1, 3)
    positions = model.mesh_vert[model.mesh_vertadr[mesh] + corners[:, 0]]
    keys = [positions]
    if model.mesh_texcoordadr[mesh] >= 0:
        # A point with two places in the texture lies on a seam, which stays where it is unless too much would be left.
        texture = model.mesh_texcoord[model.mesh_texcoordadr[mesh] + corners[:, 1]]
        keys.insert(0, np.concatenate([positions, texture], 1))
    for key in keys:
        _, origin, indices = np.unique(key, axis=0, return_index=True, return_inverse=True)
        kept = _reduce(library, indices.reshape(-1), positions[origin], triangles)
        if len(kept) <= 2 * 3 * triangles:
            break
    chosen = corners[origin[kept]].reshape(-1, 3, 3)
    used = slice(start, start + len(chosen))
    model.mesh_face[used] = chosen[..., 0]
    model.mesh_facetexcoord[used] = chosen[..., 1]
    model.mesh_facenormal[used] = chosen[..., 2]
    model.mesh_facenum[mesh] = len(chosen)


def _reduce(library: Any, indices: np.ndarray, positions: np.ndarray, triangles: int) -> np.ndarray:
    indices = np.ascontiguousarray(indices, np.uint32)
    kept = np.zeros_like(indices)
    positions = np.ascontiguousarray(positions, np.float32)
    count = library.simplify(kept, indices, positions, target_index_count=3 * triangles, target_error=1.0)
    return kept[:count]


def _library() -> Any:
    try:
        import meshoptimizer
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "config.env.libero.decimate needs the library meshoptimizer: pip install meshoptimizer==0.2.30a0, "
            "or set config.env.libero.decimate=0"
        ) from None
    return meshoptimizer

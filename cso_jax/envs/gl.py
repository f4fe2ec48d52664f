"""Offscreen OpenGL for MuJoCo: choosing a library that works on this machine, and cheap camera images.

MuJoCo reads the environment variable MUJOCO_GL when it is imported and when a rendering context is made, so a process
that wants images calls `configure_gl` before it imports mujoco. Runs without images need no OpenGL library at all.
"""

import atexit
import functools
import importlib
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

BACKENDS = ("egl", "osmesa")
"""What can draw without a display, in order of preference: EGL uses a GPU where there is one."""

_PROBE = """
import importlib, sys, mujoco
context = importlib.import_module("mujoco." + sys.argv[1]).GLContext(16, 16)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100).free()
print("drawn", flush=True)
"""
_PROBE_TIMEOUT_S = 120


def configure_gl(obs: str) -> str:
    """Make sure that MuJoCo can draw if `obs` is "pixels", and return the name of what will draw ("egl", ...).

    A MUJOCO_GL that is already set is taken as it is. Otherwise each backend is tried in a child process (a broken
    driver may kill the process that loads it) and the first one that works is put into MUJOCO_GL, where processes
    started later find it. For any other `obs` nothing is tried or changed.

    Raises RuntimeError, naming the packages to install, if images are wanted and no backend works.
    """
    if obs != "pixels":
        return gl_name()
    if _chosen() == "none":
        raise RuntimeError(f"camera images are wanted, but MUJOCO_GL={os.environ['MUJOCO_GL']} turns drawing off")
    if _chosen():
        return gl_name()
    for name in BACKENDS:
        if backend_works(name):
            os.environ["MUJOCO_GL"] = name
            return name
    raise RuntimeError(
        "camera images need an OpenGL library that draws without a display, and neither EGL nor OSMesa works here: "
        "install Debian's libegl1 (with libgl1-mesa-dri where there is no GPU driver) or libosmesa6"
    )


def gl_name() -> str:
    """The OpenGL backend that MuJoCo is told to use in this process: MUJOCO_GL in lower case, "none" if unset."""
    return _chosen() or "none"


@functools.cache
def backend_works(name: str) -> bool:
    """Whether MuJoCo can draw with `name` ("egl" or "osmesa"), tried once per process in a child process."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE, name],
            env={**os.environ, "MUJOCO_GL": name},
            capture_output=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    # The exit status does not count: some drivers crash while the process ends, after everything was drawn.
    return b"drawn" in probe.stdout


class SceneRenderer:
    """Draws the cameras of one model: square RGB images, with shadows, reflections and multisampling as asked.

    Holds the model's meshes and textures in OpenGL memory (30-80 MB, 0.1 s to build with software rendering), and
    draws the state of any MjData of the same model file. All renderers of a process share one OpenGL context.

    `size` is the largest image in pixels. `shadows`, `reflections`: bool; `msaa`: samples per pixel, 0 for none;
    `hidden_groups`: groups of geoms that are not drawn besides MuJoCo's usual ones.
    """

    def __init__(
        self,
        model: Any,
        size: int,
        *,
        shadows: bool,
        reflections: bool,
        msaa: int,
        hidden_groups: Sequence[int] = (),
    ) -> None:
        import mujoco

        self._mujoco = mujoco
        self._gl = _process_context()
        self._gl.make_current()
        self._context = _make_context(model, size, shadows=shadows, msaa=msaa)
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = reflections
        self._option = mujoco.MjvOption()
        self._option.geomgroup[list(hidden_groups)] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._size = size

    def render(self, model: Any, data: Any, camera: str, size: int, *, upright: bool = True) -> np.ndarray:
        """Image uint8 `[size, size, 3]` of `data` from the model's camera of that name, up side up.

        Not `upright`: as OpenGL hands it over, the bottom row first, which is robosuite's convention.

        Raises ValueError for a camera that the model does not have, or a `size` above the renderer's.
        """
        mujoco = self._mujoco
        if size > self._size:
            raise ValueError(f"this renderer draws up to {self._size} pixels, asked for {size}")
        self._camera.fixedcamid = _camera_id(model, camera)
        self._gl.make_current()
        # All renderers share one OpenGL context: drawing goes to whichever was told last, and another may be gone.
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        viewport = mujoco.MjrRect(0, 0, size, size)
        pixels = np.empty((size, size, 3), np.uint8)
        mujoco.mjv_updateScene(model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        mujoco.mjr_render(viewport, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, None, viewport, self._context)
        if not upright:
            return pixels
        # OpenGL's first row is the bottom one. Some cameras hang upside down (MetaWorld's corners): turn them over.
        upside_down = model.cam_mat0[self._camera.fixedcamid][7] < -0.1
        return np.ascontiguousarray(pixels[:, ::-1] if upside_down else pixels[::-1])

    def close(self) -> None:
        """Free the OpenGL memory."""
        self._gl.make_current()
        self._context.free()


class RendererCache:
    """The renderers of a process by model name, the least recently used one closed above `capacity`."""

    def __init__(
        self,
        capacity: int,
        size: int,
        flags: Mapping[str, Any],
        prepare: Callable[[Any], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`size` and `flags` are SceneRenderer's; each renderer is made within `prepare(model)`."""
        self.capacity = capacity
        self._size = size
        self._flags = dict(flags)
        self._prepare = prepare
        self._renderers: OrderedDict[str, SceneRenderer] = OrderedDict()

    def get(self, name: str, model: Any) -> SceneRenderer:
        """The renderer for `model`; models with the same `name` must come from the same file."""
        renderer = self._renderers.pop(name, None)
        if renderer is None:
            while len(self._renderers) >= self.capacity:
                self._renderers.popitem(last=False)[1].close()
            with self._prepare(model):
                renderer = SceneRenderer(model, self._size, **self._flags)
        self._renderers[name] = renderer
        return renderer

    def close(self) -> None:
        """Free every renderer."""
        while self._renderers:
            self._renderers.popitem()[1].close()


def _chosen() -> str:
    name = os.environ.get("MUJOCO_GL", "").strip().lower()
    return "none" if name in ("disable", "disabled", "off", "false", "0") else name


def _make_context(model: Any, size: int, *, shadows: bool, msaa: int) -> Any:
    import mujoco

    quality, buffer = model.vis.quality, model.vis.global_
    before = quality.offsamples, quality.shadowsize, buffer.offwidth, buffer.offheight
    quality.offsamples = msaa
    buffer.offwidth = buffer.offheight = size
    if not shadows:
        quality.shadowsize = 0  # else 64 MB are kept for shadows that are never drawn
    try:
        return mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
    finally:
        quality.offsamples, quality.shadowsize, buffer.offwidth, buffer.offheight = before


def _camera_id(model: Any, camera: str) -> int:
    names = [model.camera(index).name for index in range(model.ncam)]
    if camera not in names:
        raise ValueError(f"there is no camera {camera!r}; there are {', '.join(names)}")
    return names.index(camera)


@functools.cache
def _process_context() -> Any:
    name = gl_name()
    if name == "none":
        name = configure_gl("pixels")
    module = name if name in BACKENDS else "glfw"
    # By its module, since mujoco.GLContext is what MUJOCO_GL said when mujoco was imported.
    context = importlib.import_module(f"mujoco.{module}").GLContext(16, 16)
    # Freed here: by the time that the context itself is collected, the functions that free it may be gone.
    atexit.register(context.free)
    return context

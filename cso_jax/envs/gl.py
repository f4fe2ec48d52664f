"""Offscreen OpenGL for MuJoCo: choosing a library that works on this machine, and cheap camera images.

MuJoCo reads the environment variable MUJOCO_GL when it is imported, where a name that it does not know or a library
that is not there is an error, and when a rendering context is made. So mujoco is imported by `load_mujoco`, which turns
drawing off for that moment, and a process that wants images calls `configure_gl` before it draws. Runs without images
need no OpenGL library, and nothing that is set about one can stop them.
"""

import atexit
import functools
import importlib
import logging
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

BACKENDS = ("egl", "osmesa")
"""What can draw without a display, in order of preference: EGL uses a GPU where there is one."""

_WINDOWED = ("glfw", "glx", "enable", "enabled", "on", "true", "1")  # MuJoCo's names for drawing with a display

# The reason goes to stdout: what an object says while it is collected would be the last words on stderr.
_PROBE = """
import importlib, sys
try:
    import mujoco
    context = importlib.import_module("mujoco." + sys.argv[1]).GLContext(16, 16)
    context.make_current()
    mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100).free()
except Exception as error:
    print("failed", type(error).__name__ + ":", " ".join(str(error).split()), flush=True)
else:
    print("drawn", flush=True)
"""
_PROBE_TIMEOUT_S = 120
_SETTINGS = ("MUJOCO_EGL_DEVICE_ID", "PYOPENGL_PLATFORM", "__EGL_VENDOR_LIBRARY_FILENAMES")

_logger = logging.getLogger(__name__)


def load_mujoco() -> Any:
    """The module `mujoco`, imported without an OpenGL library, whatever MUJOCO_GL says: contexts are made here."""
    with environment(MUJOCO_GL="disabled"):
        return importlib.import_module("mujoco")


@contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Environment variables as given, None for unset, within the `with` block."""
    before = {name: os.environ.get(name) for name in values}
    _set_variables(values)
    try:
        yield
    finally:
        _set_variables(before)


def _set_variables(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def configure_gl(obs: str) -> str:
    """Make sure that MuJoCo can draw if `obs` is "pixels", and return the name of what will draw ("egl", ...).

    A MUJOCO_GL that is already set is taken as it is (`require_gl` tries it). Otherwise each backend is tried in a
    child process (a broken driver may kill the process that loads it) and the first one that works is put into
    MUJOCO_GL, where processes started later find it. For any other `obs` nothing is tried or changed.

    Raises RuntimeError, saying what is set and what to do, if images are wanted and no backend works.
    """
    if obs != "pixels":
        return gl_name()
    if _chosen() == "none":
        raise RuntimeError(
            f"camera images are wanted, but MUJOCO_GL={os.environ['MUJOCO_GL']} turns drawing off; unset it, or use "
            "state observations (--config.env.obs=state)"
        )
    if _chosen():
        if _chosen() not in (*BACKENDS, *_WINDOWED):
            raise RuntimeError(f"MUJOCO_GL={os.environ['MUJOCO_GL']} names no OpenGL backend; {_CHOICES}")
        return gl_name()
    for name in BACKENDS:
        if backend_works(name):
            os.environ["MUJOCO_GL"] = name
            return name
    reasons = "; ".join(f"{name}: {_short(backend_problem(name), 55)}" for name in BACKENDS)
    raise RuntimeError(f"camera images need EGL or OSMesa, and neither draws here ({reasons}): {_remedy()}")


_CHOICES = "unset it to let EGL and OSMesa be tried, or set it to egl, osmesa or glfw"


def require_gl(obs: str, *, fall_back: bool = False) -> str:
    """`configure_gl`, with a MUJOCO_GL that is already set tried too.

    With `fall_back` one that does not work counts as not set, unless it turns drawing off: for images that a run can do
    without and that nobody chose the backend for.

    Raises RuntimeError, with the reason, if it does not draw.
    """
    name = _chosen()
    if obs != "pixels" or name in ("", "none"):
        return configure_gl(obs)
    known = name in (*BACKENDS, *_WINDOWED)
    if known and backend_works(name):
        return gl_name()
    if fall_back:
        os.environ.pop("MUJOCO_GL")
    if known and not fall_back:
        also = f", and {_settings()}" if _settings() else ""
        reason = _short(backend_problem(name), 110)
        raise RuntimeError(f"MUJOCO_GL={os.environ['MUJOCO_GL']} is set{also}, but draws nothing: {reason}; {_CHOICES}")
    return configure_gl(obs)


@functools.cache
def can_draw() -> bool:
    """Whether this process can draw videos; where it cannot, that is said once in the log."""
    try:
        configure_gl("pixels")
    except RuntimeError as error:
        _logger.warning("no videos: %s", error)
        return False
    return True


def gl_name() -> str:
    """The OpenGL backend that MuJoCo is told to use in this process: MUJOCO_GL in lower case, "none" if unset."""
    return _chosen() or "none"


def backend_works(name: str) -> bool:
    """Whether MuJoCo can draw with `name` ("egl", "osmesa", "glfw"), tried once per process in a child process."""
    return not backend_problem(name)


@functools.cache
def backend_problem(name: str) -> str:
    """Why MuJoCo cannot draw with `name`, on one line, in the words of what failed; empty if it can."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE, _module(name)],
            env={**os.environ, "MUJOCO_GL": name},
            capture_output=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_PROBE_TIMEOUT_S:g} s"
    except OSError as error:
        return str(error)
    # The exit status does not count: some drivers crash while the process ends, after everything was drawn.
    lines = probe.stdout.splitlines()
    if "drawn" in lines:
        return ""
    said = [line.removeprefix("failed ") for line in lines if line.startswith("failed ")]
    said += probe.stderr.strip().splitlines()[-1:]
    reason = said[0] if said else f"its process ended with {probe.returncode}"
    # What PyOpenGL's loader leaves when the library itself is not there.
    return "its library was not found" if "'NoneType' object has no attribute" in reason else reason


def _module(name: str) -> str:
    # A name that is no backend has no module: the probe says so.
    return "glfw" if name in _WINDOWED else name


def _settings() -> str:
    return ", ".join(f"{name}={os.environ[name]}" for name in _SETTINGS if os.environ.get(name))


def _remedy() -> str:
    if _settings():
        return f"correct or unset {_settings()}"
    return "install Debian's libegl1 (with libgl1-mesa-dri where there is no GPU driver) or libosmesa6"


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


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
        mujoco = self._mujoco = load_mujoco()
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
    name = configure_gl("pixels")
    # By its module, since mujoco.GLContext is what MUJOCO_GL said when mujoco was imported.
    context = importlib.import_module(f"mujoco.{_module(name)}").GLContext(16, 16)
    # Freed here: by the time that the context itself is collected, the functions that free it may be gone.
    atexit.register(context.free)
    return context

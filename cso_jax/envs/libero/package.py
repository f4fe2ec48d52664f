"""Importing LIBERO and robosuite without their side effects: no questions, no files in the home folder, no OpenGL.

Left alone, the first import of LIBERO asks for a folder on stdin and writes to the home folder, and the first import of
robosuite switches MuJoCo to EGL, loads it, and opens a log file that all users of a machine share.
"""

import atexit
import contextlib
import functools
import importlib
import importlib.util
import logging
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cso_jax.envs.gl import environment, load_mujoco
from cso_jax.envs.libero.files import package_folder
from cso_jax.files import expanded


@functools.cache
def problem_classes(assets: Path) -> dict[str, Any]:
    """LIBERO's problem classes by lower-case name, reading their meshes and textures from `assets`.

    A process has one folder of assets: raises RuntimeError if another one was asked for before.
    Raises ModuleNotFoundError, with the commands to install, if LIBERO is not there.
    """
    package_folder()
    if problem_classes.cache_info().currsize:
        raise RuntimeError("this process has already loaded LIBERO with another folder of assets")
    load_mujoco()
    with _quiet_imports():
        libero = importlib.import_module("libero.libero")
        libero.__dict__["_assets_path_cache"] = str(assets)
        envs = importlib.import_module("libero.libero.envs")
        importlib.import_module("cso_jax.envs.libero.compiled")  # here, for where numba keeps what it compiles
    classes: dict[str, Any] = envs.TASK_MAPPING
    return classes


@contextlib.contextmanager
def _quiet_imports() -> Iterator[None]:
    if "robosuite" not in sys.modules:
        # It hands its messages on to the root logger too, among them advice on settings that are made below.
        logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
        _load_macros()
    root = package_folder()
    places = {"benchmark_root": "", "bddl_files": "bddl_files", "init_states": "init_files", "datasets": "datasets"}
    lines = [f"{name}: '{root / place}'\n" for name, place in {**places, "assets": "assets"}.items()]
    with tempfile.TemporaryDirectory(prefix="cso_jax_libero_") as folder:
        (Path(folder) / "config.yaml").write_text("".join(lines))
        # robosuite reads MUJOCO_GL itself and must not load an OpenGL library.
        # It also compares MUJOCO_EGL_DEVICE_ID with the GPUs that CUDA may use, for images that it does not draw.
        hidden = {"LIBERO_CONFIG_PATH": folder, "MUJOCO_GL": "disabled", "MUJOCO_EGL_DEVICE_ID": None}
        with environment(**hidden, **_cache_folders()):
            yield


def _cache_folders() -> dict[str, str]:
    """Where numba and matplotlib are to keep things, as environment variables, where their own places do not do.

    numba compiles robosuite's helpers when they are imported, keeps them beside them or in the home folder, and raises
    an error where it can write to neither: a package that another user installed, in a container without a home folder.
    matplotlib makes a new temporary folder in every process, and says so.
    """
    robosuite = importlib.util.find_spec("robosuite")
    assert robosuite is not None and robosuite.origin is not None  # package_folder has looked
    beside = Path(robosuite.origin).parent / "utils" / "__pycache__"
    places = {
        "NUMBA_CACHE_DIR": (beside, _at_home("XDG_CACHE_HOME", "~/.cache") / "numba"),
        "MPLCONFIGDIR": (_at_home("XDG_CONFIG_HOME", "~/.config") / "matplotlib",),
    }
    lacking = [name for name, own in places.items() if not os.environ.get(name) and not any(map(_writable, own))]
    return {name: str(private_folder(name.lower())) for name in lacking}


def _at_home(variable: str, usual: str) -> Path:
    return Path(os.environ.get(variable) or expanded(usual))


def _writable(folder: Path) -> bool:
    if not folder.is_absolute():  # there is no home folder
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def private_folder(name: str) -> Path:
    """A folder for temporary files that all processes of this user share; one of this process where that is not safe.

    Programs are loaded from it, so a folder of that name which somebody else has made is left alone.
    """
    shared = Path(tempfile.gettempdir()) / f"cso_jax_{name}_{os.getuid()}"
    try:
        shared.mkdir(mode=0o700, exist_ok=True)
        status = shared.lstat()
    except OSError:
        status = None
    if status and stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022:
        return shared
    own = tempfile.mkdtemp(prefix=f"cso_jax_{name}_")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return Path(own)


def _load_macros() -> None:
    # robosuite's settings have to be changed before the package reads them, which it does while it is imported.
    name = "robosuite.macros"
    package = importlib.util.find_spec("robosuite")
    assert package is not None and package.origin is not None  # package_folder has looked
    spec = importlib.util.spec_from_file_location(name, Path(package.origin).parent / "macros.py")
    assert spec is not None and spec.loader is not None
    macros = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(macros)
    macros.__dict__.update(FILE_LOGGING_LEVEL=None, CONSOLE_LOGGING_LEVEL="ERROR", MUJOCO_GPU_RENDERING=False)
    sys.modules[name] = macros

"""Importing LIBERO and robosuite without their side effects: no questions, no files in the home folder, no OpenGL.

Left alone, the first import of LIBERO asks for a folder on stdin and writes to the home folder, and the first import of
robosuite switches MuJoCo to EGL, loads it, and opens a log file that all users of a machine share.
"""

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cso_jax.envs.libero_files import package_folder


@functools.cache
def problem_classes(assets: Path) -> dict[str, Any]:
    """LIBERO's problem classes by lower-case name, reading their meshes and textures from `assets`.

    A process has one folder of assets: raises RuntimeError if another one was asked for before.
    Raises ModuleNotFoundError, with the commands to install, if LIBERO is not there.
    """
    package_folder()
    if problem_classes.cache_info().currsize:
        raise RuntimeError("this process has already loaded LIBERO with another folder of assets")
    importlib.import_module("mujoco")
    with _quiet_imports():
        libero = importlib.import_module("libero.libero")
        libero.__dict__["_assets_path_cache"] = str(assets)
        envs = importlib.import_module("libero.libero.envs")
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
        # mujoco, imported before, has read MUJOCO_GL; robosuite reads it now and must not load an OpenGL library.
        with _environment(LIBERO_CONFIG_PATH=folder, MUJOCO_GL="disabled"):
            yield


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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

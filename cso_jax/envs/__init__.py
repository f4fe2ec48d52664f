"""The simulators, behind one protocol. A new one is a module that offers what `protocol.Benchmark` lists, and a line
in `BENCHMARKS`: docs/how_to_add_an_environment.md.

`settings` is the plain dictionary of `config.env`; it travels to worker processes, so nothing here imports JAX.
"""

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any, cast

from cso_jax.envs.protocol import Benchmark, Environment, EnvSpec, RobotInterface

BENCHMARKS = {
    "metaworld": "cso_jax.envs.metaworld.benchmark",
    "libero": "cso_jax.envs.libero.benchmark",
    "tabletop": "cso_jax.envs.tabletop.benchmark",
    "robot": "cso_jax.envs.robot",
    "fake": "cso_jax.envs.fake",
}
"""The module of every benchmark, by its name in `config.env.name`."""


def benchmark(name: str) -> Benchmark:
    """The module of a benchmark. Raises KeyError for a name that is not in `BENCHMARKS`."""
    return cast(Benchmark, importlib.import_module(BENCHMARKS[name]))


def task_names(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The tasks that `settings["tasks"]` names: task names and sets of them (such as "ML45-train"), in that order.

    Raises ValueError for a name that does not exist, with the nearest ones.
    """
    sets = benchmark(settings["name"]).task_sets(settings)
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


def problems(settings: Mapping[str, Any]) -> list[str]:
    """Everything wrong with the values of `config.env`, one line each."""
    return benchmark(settings["name"]).problems(settings)


def sentence(settings: Mapping[str, Any], task: str) -> str:
    """What the task asks for, in words."""
    return benchmark(settings["name"]).sentence(settings, task)


def needs_gl(settings: Mapping[str, Any]) -> bool:
    """Whether images and videos are drawn with OpenGL."""
    return benchmark(settings["name"]).needs_gl(settings)


def require_files(settings: Mapping[str, Any]) -> dict[str, str]:
    """The versions of files that more than one source offers: what results hold beside those of packages.

    Raises FileNotFoundError if the benchmark needs files that are not there.
    """
    return benchmark(settings["name"]).require_files(settings)


def under_protocol(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The settings for an evaluation under another protocol, of those that the benchmark has.

    Raises ValueError for one that there is not.
    """
    return benchmark(settings["name"]).under_protocol(settings, name)


def evaluation_states(settings: Mapping[str, Any]) -> int | None:
    """How many evaluation states a task has, after which they repeat with the index; None where they never do."""
    return benchmark(settings["name"]).EVALUATION_STATES


def spec(settings: Mapping[str, Any]) -> EnvSpec:
    """Observation and action shapes; builds no simulator."""
    return benchmark(settings["name"]).spec(settings)


def robot_interface(settings: Mapping[str, Any]) -> RobotInterface:
    """What actions mean and how images lie."""
    return benchmark(settings["name"]).robot_interface(settings)


def factory(settings: Mapping[str, Any]) -> Callable[[dict[str, Any], int], list[Environment]]:
    """The benchmark's own `make_environments`: what a worker process is given finds its module without a registry."""
    return benchmark(settings["name"]).make_environments


def make_environments(settings: dict[str, Any], count: int) -> list[Environment]:
    """`count` environments for one worker process."""
    return factory(settings)(settings, count)


def renderer(settings: Mapping[str, Any]) -> str:
    """What draws the images of a run ("egl", "osmesa", ...), "none" where no image is drawn."""
    return benchmark(settings["name"]).renderer(settings)

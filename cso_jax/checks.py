"""Whether a configuration has the keys and the types of its benchmark's defaults."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from cso_jax import defaults, envs
from cso_jax.config_values import flatten


def structure_problems(config: ConfigDict) -> list[str]:
    """Keys that the defaults of the config's benchmark have and it lacks, and values of another type."""
    found = flatten(config)
    name = str(found.get("env.name"))
    wanted = flatten(defaults.benchmark(name)) if name in envs.BENCHMARKS else _of_every_benchmark()
    missing = [key for key in wanted if key not in found]
    if missing and set(missing) <= set(_of_every_benchmark()):
        return [f"the config lacks {_some(missing)}: start from cso_jax.defaults.metaworld() or libero()"]
    if missing:
        return [f"config.env.name is {name}, but the config was not made for it: it lacks {_some(missing)}; start from "
                f"one that was, such as {envs.benchmark(name).EXAMPLE}"]  # fmt: skip
    return [f"config.{key} must be {kind_name(type(value).__name__)}, like {value!r}; got {found[key]!r}"
            for key, value in wanted.items() if not _same_kind(found[key], value)]  # fmt: skip


def _of_every_benchmark() -> dict[str, Any]:
    first, *others = (flatten(defaults.benchmark(name)) for name in envs.BENCHMARKS)
    return {key: value for key, value in first.items() if all(key in other for other in others)}


def _some(keys: Sequence[str]) -> str:
    shown = ", ".join(f"config.{key}" for key in keys[:3])
    return shown + (f" and {len(keys) - 3} more keys" if len(keys) > 3 else "")


def _same_kind(value: Any, like: Any) -> bool:
    if isinstance(like, bool) or isinstance(value, bool):
        return isinstance(like, bool) and isinstance(value, bool)
    kinds: dict[type, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,), tuple: (tuple, list)}
    fits = isinstance(value, kinds[type(like)])
    return fits and (not isinstance(like, tuple) or not like or all(_same_kind(item, like[0]) for item in value))


def kind_name(kind: str) -> str:
    """A type of value in words: `kind` is its name in Python."""
    return {"int": "a whole number", "float": "a number", "bool": "true or false", "tuple": "a list"}.get(kind, kind)

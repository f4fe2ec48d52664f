"""Rules that the values of a configuration keep, apart from the ranges of single values: `config.validate` asks them.

Each function returns problems, one line each; none where there is nothing to say.
"""

import math
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from cso_jax import defaults, envs


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


def schedule_problems(config: ConfigDict) -> list[str]:
    """What does not go together in the learning rates and lengths of the supervised stages that run."""
    problems = []
    for stage in ("codebook", "imitation", *(("rsft",) if config.rsft.enabled else ())):
        settings = config[stage]
        if settings.final_learning_rate > settings.learning_rate:
            problems.append(
                f"config.{stage}.final_learning_rate is {settings.final_learning_rate:g}, above "
                f"config.{stage}.learning_rate = {settings.learning_rate:g}: it is where the cosine ends; lower it too"
            )
        by_epochs = stage == "rsft" and settings.steps == 0  # how many steps that will be is not known yet
        if not by_epochs and settings.warmup_steps > settings.steps:
            problems.append(
                f"config.{stage}.warmup_steps is {settings.warmup_steps}, but the stage has {settings.steps} steps"
            )
    if config.rsft.enabled and config.rsft.steps == 0 and config.rsft.epochs == 0:
        problems.append("config.rsft.steps and config.rsft.epochs are both 0: one of them says how long R-SFT trains")
    return problems


def sampling_problems(config: ConfigDict) -> list[str]:
    """Where the policy would do the same in every episode of an initial state, and codes that there are not."""
    vocabulary = math.prod(config.autoencoder.levels)
    problems = [
        f"config.{key} is {top_k}, but there are {vocabulary} codes"
        for key, top_k in (("sampling.top_k", config.sampling.top_k), ("rsft.top_k", config.rsft.top_k))
        if top_k > vocabulary
    ]
    uses = (
        (config.spo.enabled, "sampling", "the episodes of a group would all be the same; SPO needs"),
        (config.rsft.enabled and config.rsft.strikes > 1 and config.rsft.strike_rule != "new_state", "rsft",
         f"the {config.rsft.strikes} attempts (config.rsft.strikes) from an initial state would all be the same; "
         "R-SFT needs"),
    )  # fmt: skip
    for used, section, why in uses:
        instead = ", or config.rsft.strikes=1" if section == "rsft" else ""
        if used and config[section].temperature == 0:
            problems.append(f"config.{section}.temperature is 0 (greedy): {why} a positive one{instead}")
        if used and config[section].top_k == 1:
            problems.append(f"config.{section}.top_k is 1 (greedy): {why} at least 2, or 0 for all codes{instead}")
    return problems


def flatten(config: ConfigDict) -> dict[str, Any]:
    """`{"spo.learning_rate": 1e-6, ...}`, leaves only."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat.update({f"{key}.{inner}": leaf for inner, leaf in flatten(value).items()})
        else:
            flat[key] = value
    return flat

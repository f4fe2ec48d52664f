"""Reading a configuration: the file, the scale, command-line overrides, validation, comparison with a stored one.

A config file is Python with `get_config() -> ConfigDict`, which starts from `cso_jax.defaults` and may use files beside
it (`from . import common`). `load` applies, in this order: the file, the scale, the command line; then `validate`
reports every problem.
"""

import ast
import contextlib
import difflib
import itertools
import math
import runpy
import sys
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from cso_jax import checks, defaults, envs, policies, rules
from cso_jax.config_values import ConfigError, differences, fingerprint, flatten, from_json, relevant, to_json
from cso_jax.files import expanded
from cso_jax.precision import PRECISIONS
from cso_jax.rollout import runner
from cso_jax.stages import table

__all__ = [
    "SCALES",
    "ConfigError",
    "differences",
    "fingerprint",
    "flatten",
    "from_json",
    "load",
    "relevant",
    "split_arguments",
    "to_json",
    "validate",
]

SCALES = ("full", "smoke")

_package_numbers = itertools.count()


def load(path: str | Path, overrides: Sequence[tuple[str, str]] = ()) -> ConfigDict:
    """The validated, locked configuration of a config file with command-line overrides.

    Args:
      path: a Python file with `get_config()`.
      overrides: ("spo.learning_rate", "1e-5") pairs, values as typed on the command line.

    Raises:
      ConfigError: a file that is not there or not a config, or any problem of keys, types and values, all at once.
    """
    path = expanded(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"no config file {path}{hint}")
    config = _made_by(path)
    config.unlock()
    config.name = path.stem
    problems = checks.structure_problems(config)
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    given = dict(overrides)
    config.scale = given.pop("scale", config.scale)
    if config.scale not in SCALES:
        raise ConfigError(f"config.scale must be one of {', '.join(SCALES)}; got {config.scale!r}")
    if config.scale == "smoke" and config.env.name in envs.BENCHMARKS:
        try:
            defaults.smoke(config)
        except (ValueError, ImportError) as error:
            raise ConfigError(str(error)) from None
    if given.get("policy.name", config.policy.name) in policies.POLICIES.keys() - {config.policy.name}:
        config = defaults.with_policy(config, given["policy.name"]).unlock()
    problems = [problem for key, text in given.items() if (problem := _override(config, key, text))]
    problems = checks.structure_problems(config) or problems or _stages_asked_for(config, given) or validate(config)
    if problems:
        raise ConfigError("\n".join(problems))
    return config.lock()


def _stages_asked_for(config: ConfigDict, given: Mapping[str, str]) -> list[str]:
    """One line for every stage that the command line switches on and the policy does not have."""
    if config.policy.name not in policies.POLICIES:  # said elsewhere
        return []
    has = policies.stages_of(config)
    asked = [key.removesuffix(".enabled") for key, text in given.items() if key.endswith(".enabled")]
    return [
        f"config.{stage}.enabled: the policy {config.policy.name} has no stage {stage}; it has {', '.join(has)}"
        for stage in asked
        if config[stage].enabled and stage not in has
    ]


def _made_by(path: Path) -> ConfigDict:
    """What `get_config()` of the file returns. Raises ConfigError, with the place in the file, for anything else."""
    try:
        with _package_of(path.parent) as package:
            get_config = runpy.run_path(str(path), run_name=f"{package}.__config__").get("get_config")
            if get_config is None:
                raise ConfigError(f"{path} defines no get_config() -> ConfigDict")
            config = get_config()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # it is a program of its own: it may raise anything
        # ml_collections refuses unknown keys and other types; it goes on to print every key that there is.
        said = (str(error).strip().splitlines() or ["nothing more was said"])[0]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        place = f" (line {lines[-1]})" if lines else ""
        raise ConfigError(f"{path} is not a config{place}: {type(error).__name__}: {said}") from None
    if not isinstance(config, ConfigDict):
        what = "nothing (does it end in `return config`?)" if config is None else f"a {type(config).__name__}"
        raise ConfigError(f"{path}: get_config() returned {what}; a config starts from cso_jax.defaults.metaworld()")
    return ConfigDict(config) if isinstance(config, FrozenConfigDict) else config


@contextlib.contextmanager
def _package_of(folder: Path) -> Iterator[str]:
    """The name of a package whose modules are the files of `folder`, for relative imports; gone afterwards.

    With a name of its own per call: nothing outside is hidden by a file of that folder, nor the other way round.
    """
    package = types.ModuleType(f"_config_files_{next(_package_numbers)}")
    package.__path__ = [str(folder.absolute())]
    sys.modules[package.__name__] = package
    try:
        yield package.__name__
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == package.__name__]:
            del sys.modules[name]


def _override(config: ConfigDict, key: str, text: str) -> str | None:
    """Set `key` from `text` in the type it has; the problem in one line, or None."""
    known = flatten(config)
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
        return f"unknown config key config.{key}" + (f"; did you mean config.{near[0]}?" if near else "")
    try:
        value = _parse(text, known[key])
    except (ValueError, SyntaxError, OverflowError):
        kind = type(known[key]).__name__
        return f"config.{key} is {checks.kind_name(kind)} (now {known[key]!r}); {text!r} is not"
    *sections, name = key.split(".")
    target = config
    for section in sections:
        target = target[section]
    with target.ignore_type():
        target[name] = value
    return None


def _parse(text: str, current: Any) -> Any:
    if isinstance(current, bool):
        lowered = text.lower()
        if lowered not in ("true", "false", "1", "0"):
            raise ValueError(text)
        return lowered in ("true", "1")
    if isinstance(current, int):
        number = float(text)
        if number != int(number):
            raise ValueError(text)
        return int(number)
    if isinstance(current, float):
        return float(text)
    if isinstance(current, tuple):
        if text[:1] in ("(", "["):
            value = ast.literal_eval(text)
        else:
            value = [_literal(part) for part in text.split(",") if part]
        value = tuple(value) if isinstance(value, list | tuple) else (value,)
        if current and not all(isinstance(item, type(current[0])) for item in value):
            raise ValueError(text)
        return value
    return text


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def validate(config: ConfigDict) -> list[str]:
    """Every problem of the values, one line each; empty when there is none."""
    problems: list[str] = []

    def need(condition: bool, message: str) -> None:
        if not condition:
            problems.append(message)

    def one_of(key: str, allowed: Sequence[str]) -> None:
        problems.extend(rules.one_of(key, flatten(config)[key], allowed))

    one_of("env.name", tuple(envs.BENCHMARKS))
    if config.env.name in envs.BENCHMARKS:
        problems += envs.problems(config.env.to_dict())
    one_of("precision", PRECISIONS)
    problems += runner.problems(config)
    one_of("encoder.task_embedding", ("id", "minilm", "clip", "file"))
    one_of("encoder.norm", ("batch", "group"))
    one_of("encoder.trunk", ("resnet", "small"))
    for key, value in flatten(config).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            need(math.isfinite(value), f"config.{key} must be a finite number; got {value}")
            need(not value < 0, f"config.{key} must not be negative; got {value}")
    for key in (
        "codebook.batch_size", "imitation.batch_size", "rsft.batch_size", "codebook.steps", "imitation.steps",
        "reference.batch_size", "reference.steps", "reference.log_every", "reference.checkpoint_every",
        "rollout.slots", "demos.per_task", "execution_horizon", "evaluation.episodes_per_task",
        "evaluation.wave", "rsft.wave", "spo.groups", "spo.wave_groups", "codebook.log_every",
        "imitation.log_every", "rsft.log_every", "spo.epochs", "spo.checkpoint_every", "codebook.checkpoint_every",
        "imitation.checkpoint_every", "rsft.checkpoint_every", "rsft.strikes", "rsft.successes_per_task",
        "spo.iterations", "rollout.max_attempts", "prior.heads", "autoencoder.heads",
        "demos.max_attempts_per_demo", "autoencoder.chunk_length", "autoencoder.width", "prior.width",
        "encoder.image_width", "encoder.lowdim_width", "autoencoder.groups", "autoencoder.hidden",
    ):  # fmt: skip
        need(flatten(config)[key] > 0, f"config.{key} must be at least 1; got {flatten(config)[key]}")
    for key in ("rollout.step_timeout_s", "rollout.start_timeout_s", "codebook.clip_norm", "imitation.clip_norm",
                "reference.clip_norm", "rsft.clip_norm", "spo.clip_norm"):  # fmt: skip
        need(flatten(config)[key] != 0, f"config.{key} must be positive; got 0")
    problems += rules.one_of("policy.name", config.policy.name, tuple(policies.POLICIES))
    if config.policy.name in policies.POLICIES:
        problems += policies.problems(config)
        for stage in table.of_policy(config):
            problems += stage.problems(config)
    need(len(config.env.tasks) > 0, "config.env.tasks is empty")
    need(config.encoder.task_embedding not in ("clip", "file") or config.encoder.task_embedding_file != "",
         f"config.encoder.task_embedding={config.encoder.task_embedding} needs "
         "--config.encoder.task_embedding_file=FILE (CLIP's weights, or the vectors)")  # fmt: skip
    return problems


def split_arguments(arguments: Sequence[str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Command-line arguments as (options, config overrides).

    `--config=FILE --workdir=DIR --config.spo.groups=4` gives `{"config": FILE, "workdir": DIR}` and
    `[("spo.groups", "4")]`; `--name value` is read like `--name=value`. Raises ConfigError for anything else.
    """
    options: dict[str, str] = {}
    overrides: list[tuple[str, str]] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if not argument.startswith("--"):
            raise ConfigError(f"unexpected argument {argument!r}; options look like --config=configs/quickstart.py")
        name, separator, value = argument[2:].partition("=")
        if not separator:
            if name == "help":
                value = "true"
            elif not queue or queue[0].startswith("--"):
                raise ConfigError(f"--{name} needs a value: --{name}=VALUE")
            else:
                value = queue.pop(0)
        if name.startswith("config."):
            overrides.append((name.removeprefix("config."), value))
        else:
            options[name] = value
    return options, overrides

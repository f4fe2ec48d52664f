"""Reading a configuration: the file, the scale, command-line overrides, validation, comparison with a stored one.

A config file is Python with `get_config() -> ConfigDict`, which starts from `cso_jax.defaults` and may use files beside
it (`from . import common`). `load` applies, in this order: the file, the scale, the command line; then `validate`
reports every problem.
"""

import ast
import contextlib
import difflib
import hashlib
import itertools
import json
import math
import runpy
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from cso_jax import checks, defaults, envs, experts, objectives, rules
from cso_jax.checks import flatten
from cso_jax.data.libero import official
from cso_jax.files import expanded
from cso_jax.precision import PRECISIONS
from cso_jax.rollout import groups

SCALES = ("full", "smoke")

_package_numbers = itertools.count()

# These change how fast a run goes or what it shows, never what it computes: a run may be continued with other values.
# Those of the section env are the benchmark's NEUTRAL.
# `rollout.slots` is not among them: it is the batch of the policy call, and rounding may depend on the batch.
_NEUTRAL = (
    "rollout.workers",
    "rollout.step_timeout_s",
    "rollout.start_timeout_s",
    "rollout.max_attempts",
    "rollout.recycle_after_episodes",
    "report.",
    "demos.processes",
    "demos.folder",
    "demos.max_attempts_per_demo",
    "encoder.task_embedding_file",
    "evaluation.wave",
)


class ConfigError(ValueError):
    """The configuration cannot be used; the message lists every problem found."""


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
    problems = [problem for key, text in given.items() if (problem := _override(config, key, text))]
    problems = checks.structure_problems(config) or problems or validate(config)
    if problems:
        raise ConfigError("\n".join(problems))
    return config.lock()


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
        if text[:1] in "([":
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
    one_of("data", ("scripted", "official"))
    one_of("precision", PRECISIONS)
    one_of("encoder.task_embedding", ("id", "minilm", "clip", "file"))
    one_of("demos.label", ("executed", "expert"))
    one_of("demos.actions", official.ACTION_RULES)
    one_of("encoder.norm", ("batch", "group"))
    one_of("rsft.strike_rule", groups.STRIKE_RULES)
    one_of("spo.unit", objectives.UNITS)
    one_of("spo.average", objectives.AVERAGES)
    one_of("spo.baseline", objectives.BASELINES)
    one_of("spo.objective", objectives.OBJECTIVES)
    for key, value in flatten(config).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            need(math.isfinite(value), f"config.{key} must be a finite number; got {value}")
            need(not value < 0, f"config.{key} must not be negative; got {value}")
    for key in (
        "codebook.batch_size", "imitation.batch_size", "rsft.batch_size", "codebook.steps", "imitation.steps",
        "rollout.slots", "demos.per_task", "execution_horizon", "evaluation.episodes_per_task",
        "evaluation.wave", "rsft.wave", "spo.groups", "spo.wave_groups", "codebook.log_every",
        "imitation.log_every", "rsft.log_every", "spo.epochs", "spo.checkpoint_every", "codebook.checkpoint_every",
        "imitation.checkpoint_every", "rsft.checkpoint_every", "rsft.strikes", "rsft.successes_per_task",
        "spo.iterations", "rollout.max_attempts", "prior.heads", "autoencoder.heads",
        "demos.max_attempts_per_demo", "autoencoder.chunk_length", "autoencoder.width", "prior.width",
        "encoder.image_width", "encoder.lowdim_width",
    ):  # fmt: skip
        need(flatten(config)[key] > 0, f"config.{key} must be at least 1; got {flatten(config)[key]}")
    for key in ("rollout.step_timeout_s", "rollout.start_timeout_s", "codebook.clip_norm", "imitation.clip_norm",
                "rsft.clip_norm", "spo.clip_norm"):  # fmt: skip
        need(flatten(config)[key] != 0, f"config.{key} must be positive; got 0")
    lists = {key: flatten(config)[key] for key in
             ("autoencoder.strides", "autoencoder.kernels", "encoder.lowdim_hidden", "autoencoder.levels")}  # fmt: skip
    uncountable = [key for key, sizes in lists.items() if not all(isinstance(n, int) and n > 0 for n in sizes)]
    if uncountable:  # the rules below compute with them
        return problems + [f"config.{k} must hold whole numbers of at least 1; got {lists[k]}" for k in uncountable]
    for key in ("autoencoder.dropout", "prior.dropout"):
        need(flatten(config)[key] < 1, f"config.{key} is a probability below 1; got {flatten(config)[key]}")
    problems += checks.schedule_problems(config)
    problems += checks.sampling_problems(config)
    chunk = config.autoencoder.chunk_length
    stride = math.prod(config.autoencoder.strides)
    need(chunk % stride == 0, f"config.autoencoder.strides {config.autoencoder.strides} must divide "
         f"the chunk of {chunk} actions")  # fmt: skip
    need(len(config.autoencoder.strides) == len(config.autoencoder.kernels),
         "config.autoencoder.strides and config.autoencoder.kernels must have one entry per layer")  # fmt: skip
    need(config.execution_horizon <= chunk,
         f"config.execution_horizon is {config.execution_horizon}, but a chunk has {chunk} actions")  # fmt: skip
    need(config.prior.width % max(config.prior.heads, 1) == 0, "config.prior.heads must divide config.prior.width")
    need(config.autoencoder.width % max(config.autoencoder.heads, 1) == 0,
         "config.autoencoder.heads must divide config.autoencoder.width")  # fmt: skip
    need(all(level >= 2 for level in config.autoencoder.levels), "config.autoencoder.levels must all be at least 2")
    epsilon = 0 < config.spo.clip_low < 0.5 and 1 <= config.spo.clip_high < 2
    need(not epsilon, "config.spo.clip_low is the lowest ratio itself, not its distance from 1: got "
         f"{config.spo.clip_low}, for that distance give {1 - config.spo.clip_low:.6g}, for no bound 0")  # fmt: skip
    need(config.spo.clip_low <= 1.0 <= config.spo.clip_high,
         "config.spo.clip_low and clip_high are bounds of the ratio itself and must enclose 1, e.g. 0.93 and 1.15; "
         f"got [{config.spo.clip_low}, {config.spo.clip_high}]")  # fmt: skip
    need(config.spo.group_size >= 2, f"config.spo.group_size must be at least 2; got {config.spo.group_size}")
    need(config.spo.max_groups >= config.spo.groups, "config.spo.max_groups must be at least config.spo.groups")
    decisions = -(-config.env.horizon // max(config.execution_horizon, 1))
    need(config.spo.minibatch_skills >= decisions,
         f"config.spo.minibatch_skills is {config.spo.minibatch_skills}, but one episode can hold {decisions} skills "
         "and a minibatch takes whole episodes")  # fmt: skip
    problems += _objective_problems(config, decisions)
    need(0.0 <= config.rsft.demo_fraction < 1.0, "config.rsft.demo_fraction must be in [0, 1)")
    need(config.rsft.strike_rule == "new_state" or config.rsft.max_rollouts_per_task >= config.rsft.strikes,
         f"config.rsft.max_rollouts_per_task is {config.rsft.max_rollouts_per_task}, but one initial state takes "
         f"config.rsft.strikes = {config.rsft.strikes} rollouts")  # fmt: skip
    need(config.autoencoder.width % 8 == 0, "config.autoencoder.width must be a multiple of 8 (GroupNorm's groups)")
    need(0.0 <= config.imitation.validation_fraction < 1.0, "config.imitation.validation_fraction must be in [0, 1)")
    need(len(config.env.tasks) > 0, "config.env.tasks is empty")
    need(config.data != "scripted" or config.env.name in experts.EXPERTS or config.env.name not in envs.BENCHMARKS,
         f"config.data=scripted needs scripted experts; there are some for {', '.join(experts.EXPERTS)}, not for "
         f"{config.env.name}")  # fmt: skip
    need(config.data != "official" or config.env.name == "libero", "config.data=official is for LIBERO's files only")
    need(config.data != "official" or config.demos.folder != "",
         "config.data=official reads HDF5 files: --config.demos.folder=FOLDER says where they are")  # fmt: skip
    need(config.data != "official" or config.demos.label == "executed",
         "config.demos.label=expert needs scripted demonstrations: official files hold executed actions")  # fmt: skip
    need(config.encoder.task_embedding not in ("clip", "file") or config.encoder.task_embedding_file != "",
         f"config.encoder.task_embedding={config.encoder.task_embedding} needs "
         "--config.encoder.task_embedding_file=FILE (CLIP's weights, or the vectors)")  # fmt: skip
    return problems


def _objective_problems(config: ConfigDict, decisions: int) -> list[str]:
    """What does not go together among the objectives of `config.spo`; an episode holds up to `decisions` skills."""
    spo = config.spo
    preference = spo.objective == "preference"
    rules = (
        (not spo.critic or spo.freeze_encoder,
         "config.spo.critic reads the frozen encoder's contexts: it needs config.spo.freeze_encoder=true"),
        (not spo.critic or not preference, "config.spo.objective=preference has no advantages for a config.spo.critic"),
        (not spo.critic or (spo.baseline == "mean" and not spo.normalise_std),
         "config.spo.critic takes the place of config.spo.baseline and normalise_std: leave them at mean and false"),
        (not spo.critic or spo.critic_learning_rate > 0, "config.spo.critic_learning_rate must be positive"),
        (spo.discount <= 1.0, f"config.spo.discount must be in [0, 1]; got {spo.discount}"),
        (spo.gae_lambda <= 1.0, f"config.spo.gae_lambda must be in [0, 1]; got {spo.gae_lambda}"),
        (not spo.normalise_std or spo.baseline != "none",
         "config.spo.normalise_std needs a config.spo.baseline: without one there is no group to normalise by"),
        (not preference or spo.freeze_encoder,
         "config.spo.objective=preference compares with a reference on stored contexts: it needs "
         "config.spo.freeze_encoder=true"),
        (not preference or spo.preference_beta > 0, "config.spo.preference_beta must be positive"),
        (not preference or spo.minibatch_skills >= 2 * decisions,
         f"config.spo.minibatch_skills is {spo.minibatch_skills}, but a pair of episodes can hold {2 * decisions} "
         "skills and a minibatch takes whole pairs"),
    )  # fmt: skip
    return [message for fits, message in rules if not fits]


def to_json(config: ConfigDict) -> str:
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str) -> ConfigDict:
    """The config that `to_json` wrote, locked; its lists become tuples again."""

    def restored(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: restored(inner) for key, inner in value.items()}
        return tuple(value) if isinstance(value, list) else value

    try:
        stored = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"config.json is not JSON: {error}") from None
    if not isinstance(stored, dict):
        raise ConfigError(f"config.json must hold an object, the values of a run; it holds a {type(stored).__name__}")
    return ConfigDict(restored(stored)).lock()


def relevant(config: ConfigDict) -> dict[str, Any]:
    """As `flatten`, without the keys that change no result."""
    neutral = _neutral(config.env.name)
    return {k: v for k, v in flatten(config).items() if not k.startswith(neutral) and k != "name"}


def _neutral(*benchmarks: Any) -> tuple[str, ...]:
    """Beginnings of keys that change no result in any of `benchmarks`; a stored one may no longer be there."""
    known = [name for name in benchmarks if name in envs.BENCHMARKS]
    return (*_NEUTRAL, *(f"env.{key}" for name in known for key in envs.benchmark(name).NEUTRAL))


def fingerprint(config: ConfigDict) -> str:
    """A short hash of everything that changes the results."""
    return hashlib.sha256(json.dumps(relevant(config), sort_keys=True).encode()).hexdigest()[:12]


def differences(stored: dict, config: ConfigDict) -> dict[str, str]:
    """What differs between a stored config and this one, as far as results depend on it: `{key: both values}`."""
    old = flatten(ConfigDict(stored))
    new = flatten(ConfigDict(json.loads(to_json(config))))
    neutral = _neutral(old.get("env.name"), new["env.name"])
    keys = [k for k in sorted(old.keys() | new.keys()) if not k.startswith(neutral) and k != "name"]
    missing = object()

    def show(value: Any) -> str:
        return "absent" if value is missing else repr(value)

    return {
        k: f"config.{k}: {show(old.get(k, missing))} in the workdir, {show(new.get(k, missing))} now"
        for k in keys
        if _plain(old.get(k, missing)) != _plain(new.get(k, missing))
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


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

"""The configuration: every value with the paper's default, command-line overrides, scales and validation.

A config file is Python with `get_config() -> ConfigDict`; it starts from `base()` and changes what its experiment
changes. `load` applies, in this order: the file, the scale, the command line; then `validate` reports every problem.
"""

import ast
import difflib
import hashlib
import json
import math
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cso_jax import objectives

SCALES = ("full", "smoke")
ENVIRONMENTS = ("metaworld", "fake")

# These change how fast a run goes or what it shows, never what it computes: a run may be continued with other values.
# `rollout.slots` is not among them: it is the batch of the policy call, and rounding may depend on the batch.
_NEUTRAL = (
    "rollout.workers",
    "rollout.step_timeout_s",
    "rollout.start_timeout_s",
    "rollout.max_attempts",
    "rollout.recycle_after_episodes",
    "report.",
    "demos.processes",
    "demos.max_attempts_per_demo",
    "env.instance_cap",
    "env.video",
    "evaluation.wave",
)


class ConfigError(ValueError):
    """The configuration cannot be used; the message lists every problem found."""


def base() -> ConfigDict:
    """The paper's values (section 5 and Appendix E) for MetaWorld ML45 from pixels."""
    config = ConfigDict()
    config.name = ""
    config.seed = 0
    config.scale = "full"

    config.env = ConfigDict()
    config.env.name = "metaworld"
    config.env.tasks = ("ML45-train",)  # task names, or a set: ML45-train, ML45-test, MT50
    config.env.obs = "pixels"  # or "state": no camera, no GL library
    config.env.cameras = ("corner2",)
    config.env.image_size = 128
    config.env.horizon = 500  # simulator steps
    config.env.render = ConfigDict({"shadows": False, "reflections": False, "msaa": 0})
    config.env.instance_cap = 96  # idle simulators kept per worker
    config.env.video_size = 160
    config.env.video_every = 4  # simulator steps between frames

    config.execution_horizon = 8  # of the 32 actions of a chunk

    config.rollout = ConfigDict()
    config.rollout.workers = 0  # 0: one per CPU core
    config.rollout.slots = 16  # environments per worker, and rows of one policy call
    config.rollout.step_timeout_s = 60.0
    config.rollout.start_timeout_s = 180.0
    config.rollout.max_attempts = 3
    config.rollout.recycle_after_episodes = 0

    config.demos = ConfigDict()
    config.demos.per_task = 100
    config.demos.noise = 0.1  # std of the Gaussian added to the expert's actions
    config.demos.extra_steps = 16  # recorded after the first success
    config.demos.label = "executed"  # or "expert": what the expert meant, without the noise
    config.demos.max_attempts_per_demo = 10
    config.demos.processes = 0

    config.autoencoder = ConfigDict()
    config.autoencoder.chunk_length = 32
    config.autoencoder.levels = (8, 5, 5, 5)
    config.autoencoder.width = 256
    config.autoencoder.encoder_layers = 2
    config.autoencoder.decoder_layers = 4
    config.autoencoder.heads = 4
    config.autoencoder.kernels = (5, 3, 3)
    config.autoencoder.strides = (2, 2, 1)
    config.autoencoder.dropout = 0.1

    config.encoder = ConfigDict()
    config.encoder.image_width = 256
    config.encoder.lowdim_width = 128
    config.encoder.lowdim_hidden = ()
    config.encoder.task_in_lowdim = False
    config.encoder.norm = "batch"
    config.encoder.normalise = False  # low-dimensional observations by the demonstrations' mean and std

    config.prior = ConfigDict()
    config.prior.width = 384
    config.prior.layers = 6
    config.prior.heads = 6
    config.prior.dropout = 0.1

    config.sampling = ConfigDict()  # the policy of evaluation and SPO
    config.sampling.temperature = 1.0
    config.sampling.top_k = 5  # 0: the whole softmax

    config.codebook = _optimisation(steps=30_000, batch_size=1024, learning_rate=1e-4, final_learning_rate=1e-5)
    config.imitation = _optimisation(steps=100_000, batch_size=256, learning_rate=1e-4, final_learning_rate=1e-5)
    config.imitation.augment = True
    config.imitation.validation_fraction = 0.05  # of each task's demonstrations

    config.rsft = _optimisation(steps=0, batch_size=256, learning_rate=1e-4, final_learning_rate=1e-5)
    config.rsft.enabled = True
    config.rsft.epochs = 20  # used when steps is 0
    config.rsft.successes_per_task = 200
    config.rsft.strikes = 10
    config.rsft.max_rollouts_per_task = 2000
    config.rsft.temperature = 1.0
    config.rsft.top_k = 5
    config.rsft.wave = 320  # rollouts between two saves
    config.rsft.demo_fraction = 0.0  # of each batch, drawn from the demonstrations
    config.rsft.augment = True

    config.spo = ConfigDict()
    config.spo.enabled = True
    config.spo.iterations = 30
    config.spo.groups = 150
    config.spo.group_size = 8
    config.spo.max_groups = 600  # drawn at most per iteration: the budget of dynamic rejection
    config.spo.wave_groups = 150
    config.spo.frontier_sampling = False  # draw tasks by how likely their groups have been mixed so far
    config.spo.epochs = 1
    config.spo.minibatch_skills = 512
    config.spo.learning_rate = 1e-6
    config.spo.weight_decay = 1e-4
    config.spo.clip_norm = 1.0
    config.spo.unit = "skill"
    config.spo.clip_low = 0.93
    config.spo.clip_high = 1.15
    config.spo.average = "episode_sum"
    config.spo.length_normalise = False
    config.spo.baseline = "mean"
    config.spo.normalise_std = False
    config.spo.entropy_bonus = 0.0
    config.spo.freeze_encoder = True
    config.spo.checkpoint_every = 1

    config.evaluation = ConfigDict()
    config.evaluation.episodes_per_task = 50
    config.evaluation.wave = 500  # episodes between two saves

    config.report = ConfigDict()
    config.report.videos = 3  # tasks shown, one success and one failure each; 0 for none
    return config.lock()


def _optimisation(*, steps: int, batch_size: int, learning_rate: float, final_learning_rate: float) -> ConfigDict:
    """AdamW with warm-up and a cosine schedule, as every supervised stage uses it."""
    return ConfigDict(
        {
            "steps": steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "final_learning_rate": final_learning_rate,
            "warmup_steps": 0,
            "weight_decay": 1e-4,
            "clip_norm": 100.0,
            "log_every": 50,
            "checkpoint_every": 1000,
        }
    )


def _apply_smoke(config: ConfigDict) -> None:
    """Shrink every stage so that it runs once, all of them in about a minute on two CPU cores."""
    limits: dict[str, Any] = {
        "env.image_size": 32,
        "env.horizon": 48,
        "rollout.slots": 8,
        "demos.per_task": 4,
        "autoencoder.width": 32,
        "autoencoder.encoder_layers": 1,
        "autoencoder.decoder_layers": 1,
        "encoder.image_width": 32,
        "prior.width": 48,
        "prior.layers": 2,
        "codebook.steps": 20,
        "codebook.batch_size": 32,
        "imitation.steps": 20,
        "imitation.batch_size": 32,
        "rsft.steps": 10,
        "rsft.epochs": 1,
        "rsft.batch_size": 32,
        "rsft.successes_per_task": 4,
        "rsft.strikes": 4,
        "rsft.max_rollouts_per_task": 8,
        "spo.iterations": 2,
        "spo.groups": 2,
        "spo.group_size": 4,
        "spo.max_groups": 6,
        "spo.wave_groups": 3,
        "spo.minibatch_skills": 64,
        "evaluation.episodes_per_task": 2,
        "report.videos": 1,
    }
    for key, limit in limits.items():
        section, name = key.split(".")
        config[section][name] = min(config[section][name], limit)
    config.rsft.steps = limits["rsft.steps"]
    for section in ("codebook", "imitation", "rsft"):
        config[section].log_every = 5
        config[section].warmup_steps = 0
    config.demos.max_attempts_per_demo = 30
    config.demos.extra_steps = 4
    if len(config.env.tasks) > 3 or config.env.tasks[0] in ("ML45-train", "MT50"):
        config.env.tasks = ("reach-v3", "button-press-topdown-v3", "drawer-close-v3")
    # A smoke run's policy hardly ever succeeds: the longest of these experts needs about 100 steps.
    config.env.horizon = 150 if config.env.name == "metaworld" else 48


def load(path: str | Path, overrides: Sequence[tuple[str, str]] = ()) -> ConfigDict:
    """The validated, locked configuration of a config file with command-line overrides.

    Args:
      path: a Python file with `get_config()`.
      overrides: ("spo.learning_rate", "1e-5") pairs, values as typed on the command line.

    Raises:
      ConfigError: a file that is not there or not a config, or any problem of keys, types and values, all at once.
    """
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"no config file {path}{hint}")
    namespace = runpy.run_path(str(path))
    if "get_config" not in namespace:
        raise ConfigError(f"{path} defines no get_config() -> ConfigDict")
    try:
        config = namespace["get_config"]()
    except (AttributeError, KeyError, TypeError) as error:
        # ml_collections refuses unknown keys and other types; it goes on to print every key that there is.
        raise ConfigError(f"{path}: {str(error).strip().splitlines()[0]}") from None
    config.unlock()
    config.name = path.stem
    given = dict(overrides)
    config.scale = given.pop("scale", config.scale)
    if config.scale not in SCALES:
        raise ConfigError(f"config.scale must be one of {', '.join(SCALES)}; got {config.scale!r}")
    if config.scale == "smoke":
        _apply_smoke(config)
    problems = [problem for key, text in given.items() if (problem := _override(config, key, text))]
    problems += validate(config) if not problems else []
    if problems:
        raise ConfigError("\n".join(problems))
    return config.lock()


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
        return f"config.{key} is {_article(kind)} (now {known[key]!r}); {text!r} is not"
    *sections, name = key.split(".")
    target = config
    for section in sections:
        target = target[section]
    with target.ignore_type():
        target[name] = value
    return None


def _article(kind: str) -> str:
    return {"int": "a whole number", "float": "a number", "bool": "true or false", "tuple": "a list"}.get(kind, kind)


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
        value = flatten(config)[key]
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        need(value in allowed, f"config.{key} must be one of {', '.join(allowed)}; got {value!r}{hint}")

    one_of("env.name", ENVIRONMENTS)
    one_of("env.obs", ("pixels", "state"))
    one_of("demos.label", ("executed", "expert"))
    one_of("encoder.norm", ("batch", "group"))
    one_of("spo.unit", objectives.UNITS)
    one_of("spo.average", objectives.AVERAGES)
    one_of("spo.baseline", objectives.BASELINES)
    for key, value in flatten(config).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            need(value >= 0, f"config.{key} must not be negative; got {value}")
    for key in (
        "codebook.batch_size", "imitation.batch_size", "rsft.batch_size", "codebook.steps", "imitation.steps",
        "rollout.slots", "demos.per_task", "execution_horizon", "env.horizon", "evaluation.episodes_per_task",
        "evaluation.wave", "rsft.wave", "spo.groups", "spo.wave_groups", "codebook.log_every",
        "imitation.log_every", "rsft.log_every", "spo.epochs", "spo.checkpoint_every", "codebook.checkpoint_every",
        "imitation.checkpoint_every", "rsft.checkpoint_every", "rsft.strikes", "rsft.successes_per_task",
        "spo.iterations", "rollout.max_attempts", "prior.heads", "autoencoder.heads", "env.image_size",
        "demos.max_attempts_per_demo",
    ):  # fmt: skip
        need(flatten(config)[key] > 0, f"config.{key} must be at least 1; got {flatten(config)[key]}")
    chunk = config.autoencoder.chunk_length
    stride = 1
    for value in config.autoencoder.strides:
        stride *= value
    need(stride > 0 and chunk % stride == 0, f"config.autoencoder.strides {config.autoencoder.strides} must divide "
         f"the chunk of {chunk} actions")  # fmt: skip
    need(len(config.autoencoder.strides) == len(config.autoencoder.kernels),
         "config.autoencoder.strides and config.autoencoder.kernels must have one entry per layer")  # fmt: skip
    need(config.execution_horizon <= chunk,
         f"config.execution_horizon is {config.execution_horizon}, but a chunk has {chunk} actions")  # fmt: skip
    need(config.prior.width % max(config.prior.heads, 1) == 0, "config.prior.heads must divide config.prior.width")
    need(config.autoencoder.width % max(config.autoencoder.heads, 1) == 0,
         "config.autoencoder.heads must divide config.autoencoder.width")  # fmt: skip
    need(all(level >= 2 for level in config.autoencoder.levels), "config.autoencoder.levels must all be at least 2")
    need(config.spo.clip_low <= 1.0 <= config.spo.clip_high,
         "config.spo.clip_low and clip_high are bounds of the ratio itself and must enclose 1, e.g. 0.93 and 1.15; "
         f"got [{config.spo.clip_low}, {config.spo.clip_high}]")  # fmt: skip
    need(config.spo.group_size >= 2, f"config.spo.group_size must be at least 2; got {config.spo.group_size}")
    need(config.spo.max_groups >= config.spo.groups, "config.spo.max_groups must be at least config.spo.groups")
    decisions = -(-config.env.horizon // max(config.execution_horizon, 1))
    need(config.spo.minibatch_skills >= decisions,
         f"config.spo.minibatch_skills is {config.spo.minibatch_skills}, but one episode can hold {decisions} skills "
         "and a minibatch takes whole episodes")  # fmt: skip
    need(0.0 <= config.rsft.demo_fraction < 1.0, "config.rsft.demo_fraction must be in [0, 1)")
    need(config.rsft.max_rollouts_per_task >= config.rsft.strikes,
         f"config.rsft.max_rollouts_per_task is {config.rsft.max_rollouts_per_task}, but one initial state takes "
         f"config.rsft.strikes = {config.rsft.strikes} rollouts")  # fmt: skip
    vocabulary = math.prod(config.autoencoder.levels)
    for key in ("sampling.top_k", "rsft.top_k"):
        top_k = flatten(config)[key]
        need(top_k <= vocabulary, f"config.{key} is {top_k}, but there are {vocabulary} codes")
    need(config.sampling.temperature > 0 or not config.spo.enabled,
         "config.sampling.temperature is 0 (greedy): the episodes of a group would all be the same; "
         "SPO needs a positive one")  # fmt: skip
    need(config.autoencoder.width % 8 == 0, "config.autoencoder.width must be a multiple of 8 (GroupNorm's groups)")
    need(0.0 <= config.imitation.validation_fraction < 1.0, "config.imitation.validation_fraction must be in [0, 1)")
    need(config.env.name != "metaworld" or config.env.horizon <= 500,
         f"config.env.horizon is {config.env.horizon}, but MetaWorld ends every episode at 500 steps")  # fmt: skip
    need(len(config.env.tasks) > 0, "config.env.tasks is empty")
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


def to_json(config: ConfigDict) -> str:
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str) -> ConfigDict:
    """The config that `to_json` wrote, locked; its lists become tuples again."""

    def restored(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: restored(inner) for key, inner in value.items()}
        return tuple(value) if isinstance(value, list) else value

    try:
        return ConfigDict(restored(json.loads(text))).lock()
    except ValueError as error:
        raise ConfigError(f"config.json is not JSON: {error}") from None


def fingerprint(config: ConfigDict) -> str:
    """A short hash of everything that changes the results."""
    relevant = {k: v for k, v in flatten(config).items() if not k.startswith(_NEUTRAL) and k != "name"}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:12]


def differences(stored: dict, config: ConfigDict) -> dict[str, str]:
    """What differs between a stored config and this one, as far as results depend on it: `{key: both values}`."""
    old = flatten(ConfigDict(stored))
    new = flatten(ConfigDict(json.loads(to_json(config))))
    keys = [k for k in sorted(old.keys() | new.keys()) if not k.startswith(_NEUTRAL) and k != "name"]
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

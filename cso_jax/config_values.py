"""Configurations as values: as text, compared, and told apart by what changes a result."""

import hashlib
import json
from typing import Any

from ml_collections import ConfigDict

from cso_jax import envs

# These change how fast a run goes or what it shows, never what it computes: a run may be continued with other values.
# Those of the section env are the benchmark's NEUTRAL.
# `rollout.slots` is not among them: it is the batch of the policy call, and rounding may depend on the batch.
_NEUTRAL = (
    "rollout.workers",
    "rollout.step_timeout_s",
    "rollout.start_timeout_s",
    "rollout.max_attempts",
    "rollout.recycle_after_episodes",
    "rollout.engine",
    "rollout.ray.",
    "report.",
    "demos.processes",
    "demos.folder",
    "demos.max_attempts_per_demo",
    "encoder.task_embedding_file",
    "evaluation.wave",
)


# What keys stood for before they were there: a workdir of that time is still this config's.
_BEFORE = {
    "policy.name": "quest",
    "reference.enabled": False,
    "reference.episodes_per_task": 0,
    "prior.head": "flat",
    "prior.guide": (),
    "prior.guide_sharpness": 1.0,
    "prior.guide_decoded": 0.0,
    "prior.guide_decoded_share": 1.0,
    "imitation.keep": "last",
    "codebook.weighted_actions": 8,
    "codebook.action_weight": 1.0,
    "codebook.mixed_share": 0.0,
    "codebook.squared_weight": 0.0,
}

# As _BEFORE, of keys that came when runs and experiments were already told apart by their fingerprints: at these values
# they are left out of it.
_SINCE: dict[str, Any] = {f"{stage}.accumulate": 1 for stage in ("codebook", "imitation", "reference", "rsft")}
_SINCE |= {"encoder.lowdim_together": False, "encoder.trunk": "resnet"}
_SINCE |= {"spo.temperature": 0.0, "spo.probe": 0}
_SINCE |= {"autoencoder.network": "transformer", "autoencoder.groups": 2, "autoencoder.hidden": 256}
_BEFORE |= _SINCE


# The same of keys that only one benchmark has.
_BEFORE_OF: dict[Any, dict[str, Any]] = {"libero": {"env.libero.spread": ()}}


class ConfigError(ValueError):
    """The configuration cannot be used; the message lists every problem found."""


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
        stored = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"config.json is not JSON: {error}") from None
    if not isinstance(stored, dict):
        raise ConfigError(f"config.json must hold an object, the values of a run; it holds a {type(stored).__name__}")
    for key, value in (_BEFORE | _BEFORE_OF.get(stored.get("env", {}).get("name"), {})).items():
        *sections, name = key.split(".")
        place = stored
        for section in sections:
            place = place.setdefault(section, {})
        place.setdefault(name, value)
    return ConfigDict(restored(stored)).lock()


def relevant(config: ConfigDict) -> dict[str, Any]:
    """As `flatten`, without the keys that change no result."""
    flat = flatten(config)
    neutral = (*_neutral(config.env.name), *_idle(flat), "reference.enabled")
    return {k: v for k, v in flat.items() if not k.startswith(neutral) and k != "name"}


def _idle(*flats: dict[str, Any]) -> tuple[str, ...]:
    """The keys of the reference other than its switch, where that is off in one of the configs."""
    if all(flat.get("reference.enabled") for flat in flats):
        return ()
    return tuple(key for flat in flats for key in flat if key.startswith("reference.") and key != "reference.enabled")


def _neutral(*benchmarks: Any) -> tuple[str, ...]:
    """Beginnings of keys that change no result in any of `benchmarks`; a stored one may no longer be there."""
    known = [name for name in benchmarks if name in envs.BENCHMARKS]
    return (*_NEUTRAL, *(f"env.{key}" for name in known for key in envs.benchmark(name).NEUTRAL))


def fingerprint(config: ConfigDict) -> str:
    """A short hash of everything that changes the results."""
    values = {key: value for key, value in relevant(config).items() if key not in _SINCE or value != _SINCE[key]}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def differences(stored: dict, config: ConfigDict) -> dict[str, str]:
    """What differs between a stored config and this one, as far as results depend on it: `{key: both values}`."""
    old = _BEFORE | _BEFORE_OF.get(stored.get("env", {}).get("name"), {}) | flatten(ConfigDict(stored))
    new = flatten(ConfigDict(json.loads(to_json(config))))
    neutral = (*_neutral(old.get("env.name"), new["env.name"]), *_idle(old, new))
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

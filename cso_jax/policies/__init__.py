"""Policies behind one interface, a module per kind: docs/how_to_add_a_policy.md."""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from cso_jax.envs.protocol import EnvSpec
from cso_jax.policies.interface import Policy

POLICIES = {
    "act": "cso_jax.policies.act",
    "bc": "cso_jax.policies.bc",
    "diffusion": "cso_jax.policies.diffusion",
    "mdt": "cso_jax.policies.mdt",
    "quest": "cso_jax.policies.quest.policy",
    "resnet_t": "cso_jax.policies.resnet_t",
    "star": "cso_jax.policies.star",
    "vqbet": "cso_jax.policies.vqbet",
}
"""The module of every kind of policy, by its name in `config.policy.name`."""


def _module(config: Mapping[str, Any]) -> ModuleType:
    return importlib.import_module(POLICIES[config["policy"]["name"]])


def build(config: ConfigDict, spec: EnvSpec, num_tasks: int, embedding_dim: int = 0) -> Policy:
    """The policy of a config for an environment with `num_tasks` tasks.

    `embedding_dim` is the size of the task embeddings, 0 where the policy learns a row per task id.
    """
    policy: Policy = _module(config).build(config, spec, num_tasks, embedding_dim)
    return policy


def stages_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The stages of the cascade that the config's kind of policy goes through, in order."""
    stages: tuple[str, ...] = _module(config).STAGES
    return stages


def problems(config: ConfigDict) -> list[str]:
    """What is wrong with the values that the policy is built from, one line each."""
    lacking = [key for key in defaults_of(config.policy.name) if key not in config.policy]
    if lacking:
        return [
            f"config.policy.name is {config.policy.name}, but the config was not made for it: it lacks "
            f"{', '.join(f'config.policy.{key}' for key in lacking)}; see cso_jax.defaults.with_policy"
        ]
    found: list[str] = _module(config).problems(config)
    return found


def defaults_of(name: str, preset: str = "public") -> dict[str, Any]:
    """The values of the section `config.policy` that are this kind's own.

    `preset` "public" is what public code has, "paper" the CSO paper's Appendix F, where it differs: a module's `PAPER`.
    Raises ValueError for a preset that this kind has not.
    """
    module = importlib.import_module(POLICIES[name])
    changes = {"public": {}, **({"paper": module.PAPER} if "PAPER" in vars(module) else {})}
    if preset not in changes:
        raise ValueError(f"the policy {name} has no preset {preset!r}; it has {', '.join(changes)}")
    return {**module.DEFAULTS, **changes[preset]}

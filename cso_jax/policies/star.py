"""A policy in the style of STAR (Li et al. 2025), whose code is not public: rotated gradients, codes in order.

A residual codebook trained by the rotation trick, a prior that draws a code given those before it, and an offset that
refines the action. Sizes and weights are not published: those here are VQ-BeT's where they mean the same, and four
codebooks.
"""

from typing import Any

from ml_collections import ConfigDict

from cso_jax.envs.protocol import EnvSpec
from cso_jax.policies import residual_skills, vqbet
from cso_jax.policies.residual_skills import STAGES, ResidualSkillPolicy, problems

__all__ = ["DEFAULTS", "STAGES", "build", "problems"]

DEFAULTS: dict[str, Any] = vqbet.DEFAULTS | {
    "chunk_length": 8,
    "books": 4,
    "commit": 1.0,
    "focal_weights": (1.0, 1.0, 1.0, 1.0),
    "focal_gamma": 0.0,  # the likelihood itself
    "offset_weight": 10.0,
}


def build(config: ConfigDict, spec: EnvSpec, num_tasks: int, embedding_dim: int = 0) -> ResidualSkillPolicy:
    """The policy of `config.policy`."""
    return residual_skills.build(config, spec, num_tasks, embedding_dim, rotation=True, sequential=True)

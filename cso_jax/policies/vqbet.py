"""VQ-BeT (Lee et al. 2024): independent codes of a residual codebook, and an offset per code.

`DEFAULTS` are the values of QueST's public reimplementation, except that it executes 2 actions of a chunk and this
library `config.execution_horizon`. `PAPER` are those of the CSO paper's Appendix F. The published method also predicts
the chunks of the earlier observations of its window; here, where a batch holds the newest chunk alone, it does not.
"""

from typing import Any

from ml_collections import ConfigDict

from cso_jax.envs.protocol import EnvSpec
from cso_jax.policies import residual_skills
from cso_jax.policies.residual_skills import STAGES, ResidualSkillPolicy, problems

__all__ = ["DEFAULTS", "PAPER", "STAGES", "build", "problems"]

DEFAULTS: dict[str, Any] = {
    "chunk_length": 5,
    "history": 10,
    "books": 2,
    "codes": 32,
    "latent": 512,
    "autoencoder_hidden": (128, 128),
    "decay": 0.8,  # of the codebooks' moving averages
    "commit": 5.0,
    "width": 120,
    "layers": 6,
    "heads": 6,
    "out": 256,
    "hidden": (1024, 1024),  # of the heads
    "dropout": 0.1,
    "focal_weights": (5.0, 0.5),
    "focal_gamma": 2.0,
    "offset_weight": 100.0,
}
PAPER: dict[str, Any] = {"chunk_length": 8, "history": 5, "codes": 1024, "autoencoder_hidden": (256,)}


def build(config: ConfigDict, spec: EnvSpec, num_tasks: int, embedding_dim: int = 0) -> ResidualSkillPolicy:
    """The policy of `config.policy`."""
    return residual_skills.build(config, spec, num_tasks, embedding_dim, rotation=False, sequential=False)

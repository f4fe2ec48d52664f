"""VQ-BeT on the quickstart's demonstrations of five MetaWorld tasks, then R-SFT and SPO, on a CPU.

    python -m cso_jax.main --config=configs/quickstart_vqbet.py --workdir=runs/vqbet

Networks are smaller than the published ones; docs/policies.md says what was measured.
"""

from cso_jax import defaults

from . import quickstart


def get_config():
    config = defaults.with_policy(quickstart.get_config(), "vqbet")
    config.policy.chunk_length = 8
    config.policy.history = 2
    config.policy.latent = 64
    config.policy.width = 64
    config.policy.layers = 2
    config.policy.heads = 4
    config.policy.out = 128
    config.policy.hidden = (256, 256)
    config.policy.dropout = 0.0
    config.codebook.learning_rate = 1e-3
    return config

"""A policy in the style of MDT on the quickstart's demonstrations of five MetaWorld tasks, then R-SFT, on a CPU.

    python -m cso_jax.main --config=configs/quickstart_mdt.py --workdir=runs/mdt

Networks are smaller than the published ones; docs/policies.md says what was measured.
"""

from cso_jax import defaults

from . import quickstart


def get_config():
    config = defaults.with_policy(quickstart.shared(), "mdt")
    config.policy.width = 64
    config.policy.heads = 4
    config.policy.encoder_layers = 1
    config.policy.decoder_layers = 2
    config.policy.dropout = 0.0
    config.policy.average_decay = 0.995
    config.imitation.steps = 3000
    return config

"""ACT on the quickstart's demonstrations of five MetaWorld tasks, then R-SFT, on a CPU.

    python -m cso_jax.main --config=configs/quickstart_act.py --workdir=runs/act

Networks are smaller than the published ones; docs/policies.md says what was measured.
"""

from cso_jax import defaults

from . import quickstart


def get_config():
    config = defaults.with_policy(quickstart.shared(), "act")
    config.policy.width = 128
    config.policy.heads = 4
    config.policy.feed_forward = 256
    config.policy.style_layers = 2
    config.policy.encoder_layers = 2
    config.policy.decoder_layers = 2
    return config

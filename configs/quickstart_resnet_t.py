"""ResNet-T on the quickstart's demonstrations of five MetaWorld tasks, then R-SFT, on a CPU.

    python -m cso_jax.main --config=configs/quickstart_resnet_t.py --workdir=runs/resnet_t

Networks are smaller than the published ones; docs/policies.md says what was measured.
"""

from cso_jax import defaults

from . import quickstart


def get_config():
    config = defaults.with_policy(quickstart.shared(), "resnet_t")
    config.policy.chunk_length = 8
    config.policy.history = 4
    config.policy.layers = 2
    config.policy.hidden = (256,)
    return config

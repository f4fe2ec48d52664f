"""Diffusion Policy on the quickstart's demonstrations of five MetaWorld tasks, then R-SFT, on a CPU.

    python -m cso_jax.main --config=configs/quickstart_diffusion.py --workdir=runs/diffusion

Networks are smaller than the published ones; docs/policies.md says what was measured.
"""

from cso_jax import defaults

from . import quickstart


def get_config():
    config = defaults.with_policy(quickstart.shared(), "diffusion")
    config.policy.widths = (64, 128)
    config.policy.condition = 128
    config.imitation.steps = 3000
    return config

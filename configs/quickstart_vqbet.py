"""VQ-BeT on the quickstart's demonstrations of five MetaWorld tasks, then R-SFT and SPO, on a CPU.

    python -m cso_jax.main --config=configs/quickstart_vqbet.py --workdir=runs/vqbet

Networks are smaller than the published ones; docs/policies.md says what was measured.
"""

from cso_jax import defaults

from . import common, quickstart


def get_config():
    config = defaults.with_policy(quickstart.shared(), "vqbet")
    common.small_residual_skills(config)
    return config

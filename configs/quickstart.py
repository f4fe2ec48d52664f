"""The whole cascade on five MetaWorld tasks, from state observations, on a laptop CPU.

    python -m cso_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Success on held-out initial states, seeds 1 to 3 pooled (n = 750 per stage, 95 % intervals): imitation 54.8 %
[51.2, 58.3], R-SFT 66.0 % [62.5, 69.3], SPO 78.3 % [75.2, 81.1]. 12 minutes on two CPU cores that other jobs shared.

Small networks and large learning rates, as minutes allow; everything that is not set here is the paper's value.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = defaults.metaworld()
    common.for_a_cpu(config)
    common.from_states(config, hidden=(256, 256))
    common.batches(config, 128)
    common.few_groups(config, 40)

    config.env.tasks = ("reach-v3", "push-v3", "pick-place-v3", "sweep-into-v3", "door-open-v3")
    config.env.horizon = 200

    config.codebook.steps = 1500
    config.imitation.steps = 2000

    config.rsft.max_rollouts_per_task = 1000
    config.rsft.steps = 1000

    config.spo.iterations = 20
    config.spo.learning_rate = 1e-4

    config.report.videos = 2
    return config

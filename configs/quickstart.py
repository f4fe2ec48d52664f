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
    common.from_states(config, hidden=(512, 512))
    common.batches(config, 128)
    common.few_groups(config, 40)

    config.env.tasks = ("reach-v3", "push-v3", "pick-place-v3", "sweep-into-v3", "door-open-v3")
    config.env.horizon = 150

    config.demos.per_task = 10
    config.demos.label = "expert"

    config.reference.steps = 1500
    config.reference.batch_size = 128

    config.codebook.steps = 2000
    config.codebook.action_weight = 10.0
    config.codebook.mixed_share = 0.5

    config.encoder.lowdim_width = 256
    config.prior.head = "digits"
    config.prior.guide = (512,)
    config.prior.guide_sharpness = 1.0
    config.prior.layers = 1
    config.imitation.steps = 1500

    config.rsft.successes_per_task = 100
    config.rsft.max_rollouts_per_task = 300
    config.rsft.learning_rate = 1e-4
    config.rsft.steps = 500

    config.spo.iterations = 30
    config.spo.epochs = 2
    config.spo.learning_rate = 7e-5

    config.report.videos = 2
    return config

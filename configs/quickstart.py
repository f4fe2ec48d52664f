"""The whole cascade on five MetaWorld tasks, from state observations, on a laptop CPU.

    python -m cso_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Ten clean demonstrations per task. Success on held-out initial states, seeds 1 to 3 pooled (n = 750 per number, 95 %
intervals): behaviour cloning 92.0 % [89.8, 93.7], its chunks through the codebook 85.5 % [82.8, 87.8], imitation 72.8 %
[69.5, 75.9], R-SFT 74.8 % [71.6, 77.8], SPO 90.0 % [87.6, 91.9]. 5.5 to 6.7 minutes on two CPU cores, the longer ones
beside other jobs.

The networks are small, the learning rates large, and the prior is guided, which the paper's is not:
docs/base_policy.md.
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

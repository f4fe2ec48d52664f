"""The whole cascade on five MetaWorld tasks, from state observations, on a laptop CPU.

    python -m cso_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Eight clean demonstrations per task. Success on held-out initial states, seeds 4 to 8 pooled (n = 1,250 per number, 95 %
intervals): behaviour cloning 79.0 % [76.6, 81.1], its chunks through the codebook 79.5 % [77.2, 81.7], imitation
77.6 % [75.2, 79.8], R-SFT 79.8 % [77.5, 82.0], SPO 95.4 % [94.0, 96.4]. Five and a half to six and
a half minutes on two idle CPU cores.

The networks are small, the learning rates large, the codebook codes coarse to fine and the prior is guided, which the
paper's are not: docs/base_policy.md.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = shared()
    config.autoencoder.network = "residual"
    config.prior.guide_decoded = 0.0  # a coarse-to-fine codebook gives the guide's chunk back nearly as it is

    # SPO draws wide enough to find what the demonstrations lack; evaluation stays closer to what was learned.
    config.sampling.temperature = 0.5
    config.sampling.top_k = 0
    config.spo.temperature = 1.0
    config.spo.iterations = 60
    config.spo.learning_rate = 5e-5
    # Most groups end alike: three episodes tell, and what that saves goes into more groups.
    config.spo.probe = 3
    common.few_groups(config, 56)
    return config


def shared():
    """What the quickstart is for every kind of policy: tasks, demonstrations, budgets, reference."""
    config = defaults.metaworld()
    common.for_a_cpu(config)
    common.from_states(config, hidden=(512, 512))
    common.batches(config, 128)
    common.few_groups(config, 40)
    common.guided(config)

    config.env.tasks = ("reach-v3", "push-v3", "pick-place-v3", "sweep-into-v3", "door-open-v3")
    config.env.horizon = 150

    config.demos.per_task = 8
    config.demos.label = "expert"

    config.reference.steps = 1500
    config.reference.batch_size = 128

    config.codebook.steps = 1000
    config.imitation.steps = 1500

    config.rsft.successes_per_task = 100
    config.rsft.max_rollouts_per_task = 300
    config.rsft.steps = 500

    config.spo.iterations = 36

    config.report.videos = 2
    return config

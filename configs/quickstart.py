"""The whole cascade on five MetaWorld tasks, from state observations, on a laptop CPU.

    python -m cso_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Eight clean demonstrations per task. Success on held-out initial states, seeds 4 to 8 pooled (n = 1,250 per number, 95 %
intervals): behaviour cloning 78.4 % [76.0, 80.6], its chunks through the codebook 77.0 % [74.6, 79.3], imitation
73.7 % [71.2, 76.0], R-SFT 78.2 % [75.8, 80.4], SPO 92.6 % [91.0, 93.9]. About six minutes on two CPU cores.

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

"""All ten tasks of LIBERO-Object from the poses of hand and objects instead of cameras, on a CPU.

    python -m cso_jax.main --config=configs/libero_object_state.py --workdir=runs/libero_object_state

Scripted demonstrations, evaluation from the benchmark's initial states.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = defaults.libero()
    common.for_a_cpu(config)
    common.from_states(config, hidden=(512, 512))
    common.batches(config, 256)
    common.few_groups(config, 24)
    common.guided(config)

    config.env.tasks = ("libero_object",)
    config.env.horizon = 300
    config.rollout.slots = 16

    config.demos.per_task = 50

    config.reference.steps = 4000
    config.reference.later_weight = 0.1

    config.codebook.steps = 2500
    config.codebook.squared_weight = 4.0

    config.prior.width = 128
    config.prior.guide_decoded = 0.0
    config.prior.guide_sharpness = 2.0
    config.imitation.steps = 4000

    config.rsft.successes_per_task = 40
    config.rsft.max_rollouts_per_task = 60
    config.rsft.steps = 500

    config.spo.iterations = 8
    config.spo.learning_rate = 5e-5

    config.evaluation.episodes_per_task = 20
    config.report.videos = 2
    return config

"""All ten tasks of LIBERO-Object from the poses of hand and objects instead of cameras, on a CPU.

    python -m cso_jax.main --config=configs/libero_object_state.py --workdir=runs/libero_object_state

Scripted demonstrations, evaluation from the benchmark's initial states. Seed 0, n = 200 per stage, 95 % intervals:
imitation 76.0 % [69.6, 81.4], R-SFT 83.0 % [77.2, 87.6], SPO 87.0 % [81.6, 91.0]. 75 minutes on two CPU cores that
several other jobs shared.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = defaults.libero()
    common.for_a_cpu(config)
    common.from_states(config, hidden=(256, 256))
    common.batches(config, 128)
    common.few_groups(config, 24)

    config.env.tasks = ("libero_object",)
    config.env.horizon = 300
    config.rollout.slots = 16

    config.demos.per_task = 50

    config.codebook.steps = 2000
    config.imitation.steps = 3000

    config.rsft.successes_per_task = 40
    config.rsft.max_rollouts_per_task = 120
    config.rsft.steps = 1000

    config.spo.iterations = 8
    config.spo.learning_rate = 1e-4

    config.evaluation.episodes_per_task = 20
    config.report.videos = 2
    return config

"""The whole cascade on three LIBERO-Object tasks from two small cameras, with scripted demonstrations, on a CPU.

    python -m cso_jax.main --config=configs/libero_quickstart.py --workdir=runs/libero_quickstart

Evaluation starts from the benchmark's initial states, R-SFT and SPO from fresh placements. Seed 11, n = 120 per stage,
95 % intervals: imitation 98.3 % [94.1, 99.5], R-SFT 97.5 % [92.9, 99.1], SPO 99.2 % [95.4, 99.9]; behaviour cloning on
the same demonstrations 100.0 % [96.9, 100.0], its chunks through the codebook 89.2 % [82.3, 93.6]. 55 minutes on one
CPU core beside other jobs.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = defaults.libero()
    common.for_a_cpu(config)
    common.from_small_images(config, size=64)
    common.batches(config, 64)
    common.few_groups(config, 18)
    common.on_libero(config)

    config.env.tasks = (
        "pick_up_the_alphabet_soup_and_place_it_in_the_basket",
        "pick_up_the_cream_cheese_and_place_it_in_the_basket",
        "pick_up_the_milk_and_place_it_in_the_basket",
    )
    config.env.horizon = 250
    config.env.libero.render = "fast"
    config.env.libero.decimate = 600
    config.env.libero.proprio = "joints_ee"
    config.rollout.slots = 8

    config.demos.per_task = 15

    config.reference.steps = 2000
    config.imitation.steps = 3000

    config.encoder.lowdim_hidden = (256,)
    config.encoder.task_in_lowdim = True

    config.rsft.successes_per_task = 40
    config.rsft.max_rollouts_per_task = 60
    config.rsft.steps = 300

    config.spo.iterations = 10
    config.spo.probe = 3

    config.evaluation.episodes_per_task = 40
    config.report.videos = 3
    return config

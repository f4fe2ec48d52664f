"""The whole cascade on three LIBERO-Object tasks from two small cameras, with scripted demonstrations, on a CPU.

    python -m cso_jax.main --config=configs/libero_quickstart.py --workdir=runs/libero_quickstart

Evaluation starts from the benchmark's initial states, R-SFT and SPO from fresh placements. Seed 0, n = 120 per stage,
95 % intervals: imitation 16.7 % [11.1, 24.3], R-SFT 24.2 % [17.4, 32.6], SPO 30.0 % [22.5, 38.7]. 84 minutes on two
CPU cores that up to ten other processes shared; alone it has not been timed. The training is cut to that time:
imitation is far from converged, and R-SFT has at most 60 rollouts per task.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = defaults.libero()
    common.for_a_cpu(config)
    common.from_small_images(config, size=64)
    common.batches(config, 32)
    common.few_groups(config, 12)

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

    config.demos.per_task = 40

    config.codebook.steps = 1500
    config.imitation.steps = 1500

    config.rsft.successes_per_task = 20
    config.rsft.max_rollouts_per_task = 60
    config.rsft.steps = 200
    config.rsft.learning_rate = 3e-4

    config.spo.iterations = 3
    config.spo.learning_rate = 1e-4

    config.evaluation.episodes_per_task = 40
    config.report.videos = 3
    return config

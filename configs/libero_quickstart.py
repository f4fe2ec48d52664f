"""The whole cascade on three LIBERO-Object tasks from two small cameras, with scripted demonstrations, on a CPU.

    python -m cso_jax.main --config=configs/libero_quickstart.py --workdir=runs/libero_quickstart

Evaluation starts from the benchmark's initial states, R-SFT and SPO from fresh placements. Seed 0, n = 120 per stage,
95 % intervals: imitation 16.7 % [11.1, 24.3], R-SFT 24.2 % [17.4, 32.6], SPO 30.0 % [22.5, 38.7]. 84 minutes on two
CPU cores that up to ten other processes shared; alone it has not been timed. The training is cut to that time:
imitation is far from converged, and R-SFT has at most 60 rollouts per task.
"""

from cso_jax import defaults


def get_config():
    config = defaults.libero()
    config.env.tasks = (
        "pick_up_the_alphabet_soup_and_place_it_in_the_basket",
        "pick_up_the_cream_cheese_and_place_it_in_the_basket",
        "pick_up_the_milk_and_place_it_in_the_basket",
    )
    config.env.image_size = 64
    config.env.horizon = 250
    config.env.libero.render = "fast"
    config.env.libero.decimate = 600
    config.env.libero.proprio = "joints_ee"
    config.rollout.slots = 8

    config.demos.per_task = 40

    config.autoencoder.width = 64
    config.autoencoder.encoder_layers = 1
    config.autoencoder.decoder_layers = 1
    config.autoencoder.dropout = 0.0
    config.codebook.steps = 1500
    config.codebook.batch_size = 128
    config.codebook.learning_rate = 1e-3
    config.codebook.warmup_steps = 50

    config.encoder.normalise = True
    config.encoder.lowdim_width = 64
    config.encoder.image_width = 128
    config.encoder.norm = "group"
    config.prior.width = 64
    config.prior.layers = 3
    config.prior.heads = 4
    config.imitation.steps = 1500
    config.imitation.batch_size = 32
    config.imitation.learning_rate = 1e-3
    config.imitation.warmup_steps = 50
    config.imitation.clip_norm = 1.0

    config.rsft.successes_per_task = 20
    config.rsft.max_rollouts_per_task = 60
    config.rsft.steps = 200
    config.rsft.batch_size = 32
    config.rsft.learning_rate = 3e-4

    config.spo.iterations = 3
    config.spo.groups = 12
    config.spo.max_groups = 12
    config.spo.wave_groups = 12
    config.spo.frontier_sampling = True
    config.spo.minibatch_skills = 256
    config.spo.learning_rate = 1e-4

    config.evaluation.episodes_per_task = 40
    config.report.videos = 3
    return config

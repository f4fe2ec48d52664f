"""The whole cascade on three MetaWorld tasks from one 84 x 84 camera; needs EGL or OSMesa.

    python -m cso_jax.main --config=configs/quickstart_pixels.py --workdir=runs/quickstart_pixels

Meant for a GPU, where it has not been run yet; on a CPU it has been run at `--config.scale=smoke` only, so what success
it reaches is not known. Its time on a CPU has not been measured.
"""

from cso_jax import defaults


def get_config():
    config = defaults.metaworld()
    config.env.tasks = ("button-press-topdown-v3", "drawer-close-v3", "reach-v3")
    config.env.obs = "pixels"
    config.env.cameras = ("corner2",)
    config.env.image_size = 84
    config.env.horizon = 150

    config.demos.per_task = 40

    config.autoencoder.width = 64
    config.autoencoder.encoder_layers = 1
    config.autoencoder.decoder_layers = 2
    config.autoencoder.dropout = 0.0
    config.codebook.steps = 600
    config.codebook.batch_size = 256
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
    config.imitation.batch_size = 64
    config.imitation.learning_rate = 1e-3
    config.imitation.warmup_steps = 50
    config.imitation.clip_norm = 1.0

    config.rsft.successes_per_task = 40
    config.rsft.max_rollouts_per_task = 200
    config.rsft.steps = 300
    config.rsft.batch_size = 64

    config.spo.iterations = 12
    config.spo.groups = 18
    config.spo.max_groups = 18
    config.spo.wave_groups = 18
    config.spo.frontier_sampling = True
    config.spo.minibatch_skills = 256
    config.spo.learning_rate = 6e-5

    config.evaluation.episodes_per_task = 50
    return config

"""The whole cascade on three MetaWorld tasks from one 84 x 84 camera; needs EGL or OSMesa.

    python -m cso_jax.main --config=configs/quickstart_pixels.py --workdir=runs/quickstart_pixels

It has been run at `--config.scale=smoke` only: what success it reaches, and in which time, is not known.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = defaults.metaworld()
    common.for_a_cpu(config)
    common.from_small_images(config, size=84)
    common.batches(config, 64)
    common.few_groups(config, 18)

    config.env.tasks = ("button-press-topdown-v3", "drawer-close-v3", "reach-v3")
    config.env.obs = "pixels"
    config.env.cameras = ("corner2",)
    config.env.horizon = 150

    config.demos.per_task = 40

    config.autoencoder.decoder_layers = 2
    config.codebook.steps = 600
    config.codebook.batch_size = 256
    config.imitation.steps = 1500

    config.rsft.successes_per_task = 40
    config.rsft.max_rollouts_per_task = 200
    config.rsft.steps = 300

    config.spo.iterations = 12
    config.spo.learning_rate = 6e-5

    config.evaluation.episodes_per_task = 50
    return config

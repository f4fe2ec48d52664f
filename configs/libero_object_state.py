"""All ten tasks of LIBERO-Object from the poses of hand and objects instead of cameras, on a CPU.

    python -m cso_jax.main --config=configs/libero_object_state.py --workdir=runs/libero_object_state

Scripted demonstrations, evaluation from the benchmark's initial states. Seed 0, n = 200 per stage, 95 % intervals:
imitation 76.0 % [69.6, 81.4], R-SFT 83.0 % [77.2, 87.6], SPO 87.0 % [81.6, 91.0]. 75 minutes on two CPU cores that
several other jobs shared.
"""

from cso_jax import defaults


def get_config():
    config = defaults.libero()
    config.env.tasks = ("libero_object",)
    config.env.obs = "state"
    config.env.horizon = 300
    config.rollout.slots = 16

    config.demos.per_task = 50

    config.autoencoder.width = 64
    config.autoencoder.encoder_layers = 1
    config.autoencoder.decoder_layers = 1
    config.autoencoder.dropout = 0.0
    config.codebook.steps = 2000
    config.codebook.batch_size = 128
    config.codebook.learning_rate = 1e-3
    config.codebook.warmup_steps = 50

    config.encoder.normalise = True
    config.encoder.lowdim_width = 64
    config.encoder.lowdim_hidden = (256, 256)
    config.encoder.task_in_lowdim = True
    config.prior.width = 64
    config.prior.layers = 3
    config.prior.heads = 4
    config.prior.dropout = 0.0
    config.imitation.steps = 3000
    config.imitation.batch_size = 128
    config.imitation.learning_rate = 1e-3
    config.imitation.warmup_steps = 50
    config.imitation.clip_norm = 1.0
    config.imitation.augment = False

    config.rsft.successes_per_task = 40
    config.rsft.max_rollouts_per_task = 120
    config.rsft.steps = 1000
    config.rsft.batch_size = 128
    config.rsft.learning_rate = 5e-4
    config.rsft.augment = False

    config.spo.iterations = 8
    config.spo.groups = 24
    config.spo.max_groups = 24
    config.spo.wave_groups = 24
    config.spo.frontier_sampling = True
    config.spo.minibatch_skills = 256
    config.spo.learning_rate = 1e-4

    config.evaluation.episodes_per_task = 20
    config.report.videos = 2
    return config

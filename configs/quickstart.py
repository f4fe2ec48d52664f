"""The whole cascade on five MetaWorld tasks, from state observations, on a laptop CPU.

    python -m cso_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Success on held-out initial states, seeds 1 to 3 pooled (n = 750 per stage, 95 % intervals): imitation 54.8 %
[51.2, 58.3], R-SFT 66.0 % [62.5, 69.3], SPO 78.3 % [75.2, 81.1]. 12 minutes on two CPU cores that other jobs shared.

Small networks and large learning rates, as minutes allow; everything that is not set here is the paper's value.
"""

from cso_jax import defaults


def get_config():
    config = defaults.metaworld()
    config.env.tasks = ("reach-v3", "push-v3", "pick-place-v3", "sweep-into-v3", "door-open-v3")
    config.env.obs = "state"
    config.env.horizon = 200

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
    config.encoder.lowdim_hidden = (256, 256)
    config.encoder.task_in_lowdim = True
    config.prior.width = 64
    config.prior.layers = 3
    config.prior.heads = 4
    config.prior.dropout = 0.0
    config.imitation.steps = 2000
    config.imitation.batch_size = 128
    config.imitation.learning_rate = 1e-3
    config.imitation.warmup_steps = 50
    config.imitation.clip_norm = 1.0
    config.imitation.augment = False

    config.rsft.max_rollouts_per_task = 1000
    config.rsft.steps = 1000
    config.rsft.batch_size = 128
    config.rsft.learning_rate = 5e-4
    config.rsft.augment = False

    config.spo.iterations = 20
    config.spo.groups = 40
    config.spo.max_groups = 40
    config.spo.wave_groups = 40
    config.spo.frontier_sampling = True
    config.spo.minibatch_skills = 256
    config.spo.learning_rate = 1e-4

    config.report.videos = 2
    return config

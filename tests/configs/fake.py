"""A cascade without a simulator, in seconds: for tests of the cascade itself."""

from cso_jax import defaults


def get_config():
    config = defaults.metaworld()
    config.env.name = "fake"
    config.env.tasks = ("three",)
    config.env.obs = "state"
    config.env.horizon = 40
    config.rollout.workers = 2
    config.rollout.slots = 4
    config.demos.per_task = 12
    config.demos.noise = 0.3
    config.demos.extra_steps = 4
    config.demos.processes = 1
    config.autoencoder.chunk_length = 8
    config.autoencoder.width = 16
    config.autoencoder.encoder_layers = 1
    config.autoencoder.decoder_layers = 1
    config.encoder.normalise = True
    config.encoder.lowdim_width = 16
    config.prior.width = 32
    config.prior.layers = 1
    config.prior.heads = 2
    for stage, steps in (("codebook", 200), ("imitation", 200), ("rsft", 10)):
        config[stage].steps = steps
        config[stage].batch_size = 32
        config[stage].learning_rate = 3e-3
        config[stage].log_every = 5
        config[stage].checkpoint_every = 20
    config.imitation.augment = False
    config.reference.enabled = False
    config.rsft.augment = False
    config.rsft.checkpoint_every = 5
    config.rsft.successes_per_task = 6
    config.rsft.strikes = 4
    config.rsft.max_rollouts_per_task = 16
    config.rsft.wave = 12
    config.spo.iterations = 3
    config.spo.groups = 3
    config.spo.group_size = 4
    config.spo.max_groups = 9
    config.spo.wave_groups = 3
    config.spo.minibatch_skills = 32
    config.spo.learning_rate = 1e-3
    config.evaluation.episodes_per_task = 4
    config.evaluation.wave = 6
    config.report.videos = 1
    return config

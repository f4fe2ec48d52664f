"""The cascade on `support/toy_environment.py`, which tests register as the benchmark "toy": as small as it can be."""

from cso_jax import defaults


def get_config():
    config = defaults.benchmark("toy")
    config.execution_horizon = 4
    config.rollout.workers = 1
    config.rollout.slots = 4
    config.demos.per_task = 8
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
    for stage, steps in (("codebook", 60), ("imitation", 60), ("rsft", 5)):
        config[stage].steps = steps
        config[stage].batch_size = 32
        config[stage].learning_rate = 3e-3
    config.imitation.augment = False
    config.reference.enabled = False
    config.rsft.augment = False
    config.rsft.successes_per_task = 4
    config.rsft.max_rollouts_per_task = 8
    config.spo.iterations = 1
    config.spo.groups = 2
    config.spo.group_size = 4
    config.spo.max_groups = 4
    config.spo.wave_groups = 2
    config.spo.minibatch_skills = 32
    config.evaluation.episodes_per_task = 4
    config.report.videos = 1
    return config

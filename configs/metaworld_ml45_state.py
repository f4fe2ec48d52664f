"""All 45 tasks of MetaWorld ML45 from state observations, on a CPU.

    python -m cso_jax.main --config=configs/metaworld_ml45_state.py --workdir=runs/ml45_state

One run, seed 0: imitation 72.8 % [69.8, 75.6], n = 900,
+ R-SFT 75.4 % [72.5, 78.1], n = 900,
+ SPO 80.3 % [77.6, 82.8], n = 900.
90 minutes on two CPU cores that other jobs shared; every task is in docs/ml45_state.md.
"""

from cso_jax import defaults


def get_config():
    config = defaults.metaworld()
    config.env.obs = "state"

    config.demos.per_task = 100
    config.demos.label = "expert"

    config.autoencoder.width = 64
    config.autoencoder.encoder_layers = 1
    config.autoencoder.decoder_layers = 2
    config.autoencoder.dropout = 0.0
    config.codebook.steps = 3000
    config.codebook.batch_size = 256
    config.codebook.learning_rate = 1e-3
    config.codebook.warmup_steps = 100

    config.encoder.normalise = True
    config.encoder.lowdim_hidden = (512, 512)
    config.encoder.task_in_lowdim = True
    config.prior.width = 128
    config.prior.layers = 3
    config.prior.heads = 4
    config.prior.dropout = 0.0
    config.imitation.steps = 9000
    config.imitation.batch_size = 256
    config.imitation.learning_rate = 1e-3
    config.imitation.warmup_steps = 100
    config.imitation.clip_norm = 1.0
    config.imitation.augment = False
    config.imitation.log_every = 100

    config.rsft.successes_per_task = 100
    config.rsft.max_rollouts_per_task = 300
    config.rsft.wave = 480
    config.rsft.steps = 3000
    config.rsft.learning_rate = 5e-4
    config.rsft.augment = False

    config.spo.iterations = 20
    config.spo.groups = 64
    config.spo.max_groups = 64
    config.spo.wave_groups = 64
    config.spo.frontier_sampling = True
    config.spo.learning_rate = 6e-5

    config.evaluation.episodes_per_task = 20
    return config

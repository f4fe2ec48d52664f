"""All 45 tasks of MetaWorld ML45 from state observations, on a CPU.

    python -m cso_jax.main --config=configs/metaworld_ml45_state.py --workdir=runs/ml45_state

One run, seed 0: imitation 72.8 % [69.8, 75.6], n = 900,
+ R-SFT 75.4 % [72.5, 78.1], n = 900,
+ SPO 80.3 % [77.6, 82.8], n = 900.
90 minutes on two CPU cores that other jobs shared; every task is in docs/ml45_state.md.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = defaults.metaworld()
    common.for_a_cpu(config)
    common.from_states(config, hidden=(512, 512))
    common.batches(config, 256)
    common.few_groups(config, 64)

    config.demos.per_task = 100
    config.demos.label = "expert"

    config.autoencoder.decoder_layers = 2
    config.codebook.steps = 3000
    config.codebook.batch_size = 256
    config.codebook.warmup_steps = 100

    config.encoder.lowdim_width = 128
    config.prior.width = 128
    config.imitation.steps = 9000
    config.imitation.warmup_steps = 100
    config.imitation.log_every = 100

    config.rsft.successes_per_task = 100
    config.rsft.max_rollouts_per_task = 300
    config.rsft.wave = 480
    config.rsft.steps = 3000

    config.spo.iterations = 20
    config.spo.minibatch_skills = 512
    config.spo.learning_rate = 6e-5

    config.evaluation.episodes_per_task = 20
    return config

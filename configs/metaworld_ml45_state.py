"""All 45 tasks of MetaWorld ML45 from state observations, on a CPU.

    python -m cso_jax.main --config=configs/metaworld_ml45_state.py --workdir=runs/ml45_state

Seeds 1, 2 and 3, n = 2,700 per stage, 95 % intervals: imitation 93.0 % [92.0, 93.9], R-SFT
95.0 % [94.2, 95.8], SPO 97.7 % [97.0, 98.2]; behaviour cloning on the same demonstrations
95.0 % [94.2, 95.8], its chunks through the codebook 93.4 % [92.4, 94.2]. An hour per run on two
CPU cores. Every task: docs/ml45_state.md.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = defaults.metaworld()
    common.for_a_cpu(config)
    common.from_states(config, hidden=(1024, 1024))
    common.batches(config, 512)
    common.few_groups(config, 64)
    common.guided(config)

    config.demos.per_task = 100
    config.demos.label = "expert"

    config.reference.hidden = (1024, 1024, 512)
    config.reference.steps = 8000
    config.reference.batch_size = 512
    config.reference.later_weight = 0.1

    config.codebook.steps = 6000
    config.codebook.warmup_steps = 100
    config.codebook.squared_weight = 4.0
    config.codebook.mixed_share = 0.0

    config.encoder.lowdim_width = 512
    config.prior.width = 128
    config.prior.guide_decoded = 0.0  # with 4,500 demonstrations it costs what it gains with 40: docs/base_policy.md
    config.prior.guide_sharpness = 2.0
    config.imitation.steps = 8000
    config.imitation.warmup_steps = 100
    config.imitation.log_every = 100

    config.sampling.temperature = 0.5

    config.rsft.successes_per_task = 50
    config.rsft.max_rollouts_per_task = 150
    config.rsft.wave = 480
    config.rsft.steps = 500

    config.spo.iterations = 40
    config.spo.learning_rate = 5e-5
    config.spo.average = "episode_mean"  # a failure has six times a success's decisions: docs/base_policy.md
    config.spo.minibatch_skills = 512

    config.evaluation.episodes_per_task = 20
    return config

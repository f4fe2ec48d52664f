"""The paper's five real-robot tasks in simulation, from the poses of hand and objects instead of cameras, on a CPU.

    pip install --no-deps -r requirements-tabletop.txt
    python -m cso_jax.main --config=configs/tabletop_state.py --workdir=runs/tabletop_state

50 clean scripted demonstrations per task. It has been run at `--config.scale=smoke` only: neither its success nor its
time is known yet. The networks and the guided prior are the quickstart's (docs/base_policy.md), not the paper's.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = defaults.benchmark("tabletop")
    common.for_a_cpu(config)
    common.from_states(config, hidden=(512, 512))
    common.batches(config, 128)
    common.few_groups(config, 40)

    config.reference.steps = 3000
    config.reference.batch_size = 128

    config.autoencoder.decoder_layers = 2
    config.codebook.steps = 2000
    config.codebook.learning_rate = 5e-3
    config.codebook.action_weight = 10.0
    config.codebook.mixed_share = 0.5

    config.encoder.lowdim_width = 256
    config.prior.head = "digits"
    config.prior.guide = (512,)
    config.prior.guide_decoded = 1.0
    config.prior.layers = 1
    config.imitation.steps = 3000

    config.rsft.successes_per_task = 100
    config.rsft.max_rollouts_per_task = 300
    config.rsft.learning_rate = 1e-4
    config.rsft.steps = 500

    config.spo.iterations = 36
    config.spo.epochs = 2
    config.spo.learning_rate = 1e-4
    config.spo.clip_low = 0.8
    config.spo.clip_high = 1.3

    config.report.videos = 5
    return config

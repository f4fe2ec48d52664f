"""The paper's five real-robot tasks in simulation, from the poses of hand and objects instead of cameras, on a CPU.

    pip install --no-deps -r requirements-tabletop.txt
    python -m cso_jax.main --config=configs/tabletop_state.py --workdir=runs/tabletop_state

50 clean scripted demonstrations per task. One run, seed 1, n = 250 per number, 95 % intervals: behaviour cloning 77.6 %
[72.0, 82.3], its chunks through the codebook 72.8 % [67.0, 77.9], imitation 58.0 % [51.8, 64.0], R-SFT
67.2 % [61.2, 72.7], SPO 70.8 % [64.9, 76.1]; 39 minutes on CPU cores that another run shared. The networks and the
guided prior are the quickstart's (docs/base_policy.md), not the paper's.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = defaults.benchmark("tabletop")
    common.for_a_cpu(config)
    common.from_states(config, hidden=(512, 512))
    common.batches(config, 128)
    common.few_groups(config, 40)
    common.guided(config)

    config.reference.steps = 3000
    config.reference.batch_size = 128

    config.codebook.steps = 2500
    config.codebook.squared_weight = 1.0
    config.imitation.steps = 3000

    config.rsft.successes_per_task = 100
    config.rsft.max_rollouts_per_task = 300
    config.rsft.steps = 500

    config.spo.iterations = 20

    config.report.videos = 5
    return config

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

"""All ten tasks of LIBERO-Goal from the poses of hand and objects instead of cameras, on a CPU.

    python -m cso_jax.main --config=configs/libero_goal_state.py --workdir=runs/libero_goal_state

Tasks are told apart by their sentences (MiniLM): all ten start from one scene. Seed 1, n = 200 per stage, 95 %
intervals: imitation 90.0 % [85.1, 93.4], R-SFT 92.0 % [87.4, 95.0], SPO 94.0 % [89.8, 96.5]; behaviour cloning on the
same demonstrations 92.0 % [87.4, 95.0], its chunks through the codebook 89.0 % [83.9, 92.6]: docs/results.md.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = defaults.libero()
    common.libero_from_states(config, "libero_goal")
    config.env.horizon = 300
    config.encoder.task_embedding = "minilm"
    config.spo.iterations = 10
    return config

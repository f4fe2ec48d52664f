"""All ten tasks of LIBERO-Goal from the poses of hand and objects instead of cameras, on a CPU.

    python -m cso_jax.main --config=configs/libero_goal_state.py --workdir=runs/libero_goal_state

Tasks are told apart by their sentences (MiniLM): all ten start from one scene. Seed 1, n = 200 per stage, 95 %
intervals: imitation 72.5 % [65.9, 78.2], R-SFT 79.0 % [72.8, 84.1], SPO 83.0 % [77.2, 87.6]; behaviour cloning on the
same demonstrations 90.5 % [85.6, 93.8], its chunks through the codebook 79.5 % [73.4, 84.5]: docs/results.md.
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

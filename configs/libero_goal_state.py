"""All ten tasks of LIBERO-Goal from the poses of hand and objects instead of cameras, on a CPU.

    python -m cso_jax.main --config=configs/libero_goal_state.py --workdir=runs/libero_goal_state

The values are those found on LIBERO-Object, except that tasks are told apart by their sentences (MiniLM): all ten start
from one scene. No run of this config has been measured yet.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = defaults.libero()
    common.libero_from_states(config, "libero_goal")
    config.env.horizon = 300
    config.encoder.task_embedding = "minilm"
    return config

"""All ten tasks of LIBERO-Object from the poses of hand and objects instead of cameras, on a CPU.

    python -m cso_jax.main --config=configs/libero_object_state.py --workdir=runs/libero_object_state

Scripted demonstrations, evaluation from the benchmark's initial states. Seed 0, n = 200 per stage, 95 % intervals:
imitation 76.0 % [69.6, 81.4], R-SFT 83.0 % [77.2, 87.6], SPO 87.0 % [81.6, 91.0]. 75 minutes on two CPU cores that
several other jobs shared.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = defaults.libero()
    common.libero_from_states(config, "libero_object")
    config.env.horizon = 300
    return config

"""All ten tasks of LIBERO-Spatial from the poses of hand and objects instead of cameras, on a CPU.

    python -m cso_jax.main --config=configs/libero_spatial_state.py --workdir=runs/libero_spatial_state

The values are those found on LIBERO-Object; no run of this config has been measured yet.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = defaults.libero()
    common.libero_from_states(config, "libero_spatial")
    config.env.horizon = 300
    return config

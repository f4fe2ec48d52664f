"""All ten tasks of LIBERO-Object from the poses of hand and objects instead of cameras, on a CPU.

    python -m cso_jax.main --config=configs/libero_object_state.py --workdir=runs/libero_object_state

Scripted demonstrations, evaluation from the benchmark's initial states. Seeds 1 to 3, n = 600 per stage, 95 %
intervals: imitation 95.5 % [93.5, 96.9], R-SFT 96.5 % [94.7, 97.7], SPO 99.0 % [97.8, 99.5]; behaviour cloning on
the same demonstrations 100.0 % [99.4, 100.0], its chunks through the codebook 98.0 % [96.5, 98.9]; before actions were
in units of their spread and before today's demonstrations, encoder, guide and codebook. About half an hour per run on
two CPU cores that other jobs shared: docs/base_policy.md.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = defaults.libero()
    common.libero_from_states(config, "libero_object")
    config.env.horizon = 300
    return config

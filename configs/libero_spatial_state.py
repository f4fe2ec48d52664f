"""All ten tasks of LIBERO-Spatial from the poses of hand and objects instead of cameras, on a CPU.

    python -m cso_jax.main --config=configs/libero_spatial_state.py --workdir=runs/libero_spatial_state

Scripted demonstrations, evaluation from the benchmark's initial states. Seed 1, n = 200 per stage, 95 % intervals:
imitation and R-SFT 86.5 % [81.1, 90.6], SPO 90.0 % [85.1, 93.4]; behaviour cloning on the same demonstrations 90.5 %
[85.6, 93.8], its chunks through the codebook 85.5 % [80.0, 89.7]: docs/results.md. That was before today's
demonstrations, encoder, guide and codebook.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = defaults.libero()
    common.libero_from_states(config, "libero_spatial")
    config.env.horizon = 300
    config.spo.iterations = 10
    return config

"""All ten tasks of LIBERO-Long from the poses of hand and objects instead of cameras, on a CPU.

    python -m cso_jax.main --config=configs/libero_long_state.py --workdir=runs/libero_long_state

Seed 1, n = 200 per stage, 95 % intervals: imitation 78.0 % [71.8, 83.2], R-SFT 82.0 % [76.1, 86.7], SPO not run yet;
behaviour cloning on the same demonstrations 81.0 % [75.0, 85.8], its chunks through the codebook 80.0 % [73.9, 85.0]:
docs/results.md.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = defaults.libero()
    common.libero_from_states(config, "libero_10")
    config.env.horizon = 600
    # Errors add up over 200 to 300 steps: a skill is 16 actions in 8 tokens, not 32, and everything trains longer.
    config.autoencoder.chunk_length = 16
    config.autoencoder.strides = (2, 1, 1)
    config.codebook.steps = 5000
    config.reference.steps = 8000
    config.imitation.steps = 10000
    config.sampling.top_k = 0
    config.spo.iterations = 6  # not run yet
    return config

"""LIBERO-Long (10 tasks of two goals each) with the paper's values (Appendix E).

    python -m cso_jax.main --config=configs/libero_long.py --workdir=runs/libero_long \
        --config.data=official --config.demos.folder=DATASETS

The paper reports 69.1 % after imitation, 85.3 % after R-SFT and 96.0 % after CSO (Tables 1, 2).
Without `--config.data=official` scripted experts make the demonstrations. It needs a GPU; here it has been run at
small sizes only, so its own success and time are not known.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = defaults.libero()
    config.env.tasks = ("libero_10",)
    config.imitation.validation_fraction = 0.0  # all 50 demonstrations train, as in the paper
    common.by_sentence(config)
    return config

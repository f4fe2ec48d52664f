"""LIBERO-90 (90 tasks) with the paper's values (Appendix E).

    python -m cso_jax.main --config=configs/libero_90.py --workdir=runs/libero_90 \
        --config.data=official --config.demos.folder=DATASETS

The paper reports 88.6 % after imitation, 93.1 % after R-SFT and 97.7 % after CSO (Table 2).
Without `--config.data=official` scripted experts make the demonstrations. It needs a GPU; here it has been run at
small sizes only, so its own success and time are not known.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = defaults.libero()
    config.env.tasks = ("libero_90",)
    config.imitation.validation_fraction = 0.0  # all 50 demonstrations train, as in the paper
    common.by_sentence(config)
    return config

"""LIBERO-Goal (10 tasks) with the paper's values (Appendix E).

    python -m cso_jax.main --config=configs/libero_goal.py --workdir=runs/libero_goal \
        --config.data=official --config.demos.folder=DATASETS

The paper reports 76.7 % after imitation and 97.4 % after CSO (Table 1).
Without `--config.data=official` scripted experts make the demonstrations. It needs a GPU; here it has been run at
small sizes only, so its own success and time are not known.
"""

from cso_jax import defaults

from . import common


def get_config():
    config = defaults.libero()
    config.env.tasks = ("libero_goal",)
    config.imitation.validation_fraction = 0.0  # all 50 demonstrations train, as in the paper
    common.by_sentence(config)
    return config

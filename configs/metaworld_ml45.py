"""MetaWorld ML45 from pixels with the paper's values (Appendix E).

    python -m cso_jax.main --config=configs/metaworld_ml45.py --workdir=runs/ml45_pixels

The paper reports 85.0 % after imitation (Table 7) and 97.3 % after CSO (Figure 2). It needs a GPU, and here it has only
been run at `--config.scale=smoke`: neither its success nor its time is known yet. The paper leaves open the numbers of
training steps of the two QueST stages, the rollout temperature and top-k: docs/paper_choices.md says what is used.
"""

from cso_jax import defaults


def get_config():
    config = defaults.metaworld()
    config.imitation.validation_fraction = 0.0  # all 100 demonstrations train, as in the paper
    return config

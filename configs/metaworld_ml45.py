"""MetaWorld ML45 from pixels with the paper's values (Appendix E): QueST 85.0 % -> CSO 97.3 % (Table 7, Figure 2)."""

from cso_jax import config as base


def get_config():
    return base.base()

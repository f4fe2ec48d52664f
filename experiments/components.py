"""Both stages and the frozen encoder are needed: Table 2.

Imitation, the whole method, R-SFT alone, SPO alone (from the imitation policy), and both with the encoder trained by
SPO too.
"""

from harness import runner, variants
from harness.variants import Variant

VARIANTS = (
    variants.imitation(Long="69.1", **{"90": "88.6"}),
    Variant("spo", "CSO (full)", variants.SPO, paper={"Long": "96.0", "90": "97.7"}),
    Variant("rsft", "without SPO (R-SFT only)", {}, stage="rsft", paper={"Long": "85.3", "90": "93.1"}),
    Variant("spo-only", "without R-SFT (SPO only)", variants.SPO_ONLY, paper={"Long": "91.7", "90": "95.3"}),
    Variant("not-frozen", "without encoder freeze", variants.NOT_FROZEN, paper={"Long": "89.6", "90": "94.4"}),
)
EXPERIMENT = runner.Experiment(
    "components", __doc__ or "", lambda _: VARIANTS, "spo", paper_columns=("Long", "90")
)  # fmt: skip

if __name__ == "__main__":
    runner.start(EXPERIMENT)

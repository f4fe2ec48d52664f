"""Every row of the main table on one suite: behaviour cloning, imitation, R-SFT, SPO, RIPT and both stages.

`main_table.py` puts the suites side by side. SPO alone and after R-SFT has the suite's clip range and averaging, RIPT
those of its own publication; iterations, groups and learning rate are the same.
"""

from collections.abc import Sequence

from harness import runner, variants
from harness.variants import Variant
from ml_collections import ConfigDict


def rows(config: ConfigDict) -> Sequence[Variant]:
    """The rows; the references only where the suite has them."""
    references = (
        Variant("reference", "behaviour cloning", {}, stage="reference"),
        Variant("ceiling", "its chunks through the codebook", {}, stage="ceiling"),
    )
    return (
        *(references if config.reference.enabled else ()),
        variants.imitation(),
        Variant("rsft", "R-SFT only", {}, stage="rsft"),
        Variant("spo-only", "SPO only", variants.SPO_ONLY),
        Variant("ript", "RIPT", variants.RIPT),
        Variant("spo", "CSO (R-SFT, then SPO)", variants.SPO),
    )


EXPERIMENT = runner.Experiment("one_suite", __doc__ or "", rows, "spo")

if __name__ == "__main__":
    runner.start(EXPERIMENT)

"""SPO tolerates a wide choice of clip ranges, trajectory ratios do not: Table 9.

Three ranges at each granularity. The trajectory rows are Eq. 5's unnormalised product, as in Table 3; the last row is
GSPO as its own paper defines it, which the paper does not list.
"""

import sys

import runner
import variants
from variants import Variant

# (method, granularity, low, high, success %, clip %)
_GRID = (
    ("token", variants.GRPO, 0.9, 1.1, "93.8", "1.2"),
    ("token", variants.GRPO, 0.8, 1.2, "94.2", "3.1"),
    ("token", variants.GRPO, 0.8, 1.28, "94.5", "3.5"),
    ("trajectory", variants.GSPO, 0.9997, 1.0004, "92.1", "0.8"),
    ("trajectory", variants.GSPO, 0.997, 1.004, "93.2", "1.5"),
    ("trajectory", variants.GSPO, 0.97, 1.04, "86.4", "12.3"),
    ("skill", variants.SPO, 0.97, 1.05, "95.5", "14.5"),
    ("skill", variants.SPO, 0.93, 1.15, "96.0", "11.2"),
    ("skill", variants.SPO, 0.8, 1.2, "95.8", "5.6"),
)
VARIANTS = (
    *(
        Variant(f"{unit}-{low:g}-{high:g}", f"{unit} [{low:g}, {high:g}]", variants.clipped(method, low, high),
                paper={"Long": success, "clip %": clip})
        for unit, method, low, high, success, clip in _GRID
    ),
    Variant("gspo-normalised", "trajectory, length-normalised [0.9997, 1.0004]", variants.GSPO_NORMALISED),
)  # fmt: skip
EXPERIMENT = runner.Experiment(
    "clipping", __doc__ or "", lambda _: VARIANTS, "skill-0.93-1.15", paper_columns=("Long", "clip %")
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(runner.main(EXPERIMENT))

"""An experiment of two variants, as tests import it, and as a script that measures log-ratios too."""

import dataclasses
import sys
from pathlib import Path

if __name__ == "__main__":
    # In place of this folder, whose modules have the names of packages.
    sys.path[0] = str(Path(__file__).parents[2] / "experiments")

from harness import runner, variants
from harness.variants import Variant

EXPERIMENT = runner.Experiment(
    "tiny", "Two ways.", lambda _: (Variant("spo", "skill", variants.SPO), Variant("grpo", "token", variants.GRPO)),
    "spo", paper_columns=("Long",),
)  # fmt: skip

if __name__ == "__main__":
    runner.start(dataclasses.replace(EXPERIMENT, log_ratios=True))

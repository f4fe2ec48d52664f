"""Whether the order of the granularities is a matter of the learning rate: not in the paper.

A suite's learning rate was found with one granularity (quickstart: skills), and how far ratios move in an iteration
decides how many leave the clip range. The four rows of granularity.py at the suite's rate and at a quarter of it.
"""

import sys

import granularity
import runner
from ml_collections import ConfigDict
from variants import Variant

_PART = 4


def rates(config: ConfigDict) -> list[Variant]:
    lower = config.spo.learning_rate / _PART
    made = []
    for rate, suffix, changes in (
        (config.spo.learning_rate, "", {}),
        (lower, f"-{lower:g}", {"spo.learning_rate": lower}),
    ):
        for one in granularity.VARIANTS:
            made.append(Variant(one.name + suffix, f"{one.label}, {rate:g}", dict(one.changes) | changes))
    return made


EXPERIMENT = runner.Experiment("learning_rates", __doc__ or "", rates, "spo")

if __name__ == "__main__":
    sys.exit(runner.main(EXPERIMENT))

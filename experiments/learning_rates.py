"""The order of the granularities does not depend on the learning rate: a control, not in the paper.

A suite's learning rate was found with one granularity (quickstart: skills), and how far ratios move in an iteration
decides how many leave the clip range. The four rows of granularity.py at the suite's rate and at a quarter of it, all
against skills at the suite's rate; then those of the lower rate among themselves.
"""

import granularity
from harness import runner, tables
from harness.variants import Variant
from ml_collections import ConfigDict

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


def finish(outcome: runner.Outcome) -> None:
    lower = [variant for variant in outcome.variants if "spo.learning_rate" in variant.changes]
    (reference,) = (variant.name for variant in lower if variant.changes["spo.unit"] == "skill")
    title = f"The lower learning rate. Suite {outcome.options.suite.stem}, scale {outcome.options.scale}."
    table = tables.compare(title, lower, outcome.rows, reference=reference, paper_columns=())
    table.write(outcome.folder, "lower")
    runner.telemetry.show(table.as_text())


EXPERIMENT = runner.Experiment("learning_rates", __doc__ or "", rates, "spo", finish=finish)

if __name__ == "__main__":
    runner.start(EXPERIMENT)

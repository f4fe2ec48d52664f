"""R-SFT needs few successes: a quarter, half and all of the suite's successes per task, Table 4 left.

SPO follows in each case. Where the suite fixes the number of R-SFT steps, all three take as many.
"""

from harness import runner, variants
from harness.variants import Variant
from ml_collections import ConfigDict

_PAPER = ((4, "91.5 ± 0.7"), (2, "94.2 ± 0.5"), (1, "96.0 ± 0.5"))


def successes(config: ConfigDict) -> list[Variant]:
    full = config.rsft.successes_per_task
    made = {max(1, full // part): paper for part, paper in _PAPER}
    return [
        Variant(f"successes-{count}", f"{count} successes per task",
                variants.SPO | {"rsft.successes_per_task": count}, paper={"Long, 50/100/200": paper})
        for count, paper in made.items()
    ]  # fmt: skip


EXPERIMENT = runner.Experiment(
    "sample_efficiency", __doc__ or "", lambda config: [variants.imitation(), *successes(config)], "imitation",
    paper_columns=("Long, 50/100/200",),
)  # fmt: skip

if __name__ == "__main__":
    runner.start(EXPERIMENT)

"""Imitation policies on the same demonstrations: the upper rows of Table 1.

Behaviour cloning by an MLP, ResNet-T, Diffusion Policy, ACT, an MDT-style policy, VQ-BeT, a STAR-style policy and
QueST, before any rollout of their own. Networks have the sizes of configs/quickstart_<kind>.py, all else is the
suite's. Training seconds are those of the policy's own stages up to imitation; a decision is timed alone, for one
episode. The runs go on to R-SFT and SPO, since they are those of other_bases.py too.
"""

from collections.abc import Sequence
from pathlib import Path

import cited
from harness import kinds, runner, variants
from harness.tables import Table, count_text, difference, difference_text, interval_text, success_text, summarise
from harness.variants import Variant
from ml_collections import ConfigDict

_REFERENCE = "imitation"


def rows(config: ConfigDict) -> Sequence[Variant]:
    """The rows; behaviour cloning only where the suite has it."""
    cloning = (Variant("reference", "behaviour cloning (MLP)", {}, stage="reference"),)
    others = tuple(
        Variant(kind, label, kinds.changes_of(kind) | ({"spo.enabled": True} if kinds.has_spo(kind) else {}),
                stage="imitation", paper={"four suites": cited.four_suites(kind)})
        for kind, label in kinds.LABELS.items()
    )  # fmt: skip
    quest = variants.imitation(**{"four suites": cited.four_suites("imitation")})
    return (*(cloning if config.reference.enabled else ()), *others, quest)


def finish(outcome: runner.Outcome) -> None:
    base = outcome.rows[_REFERENCE]
    lines = []
    for variant in outcome.variants:
        found = outcome.rows[variant.name]
        summary = summarise(found)
        versus = None if variant.name == _REFERENCE or not found or not base else difference(found, base)
        timed = found and variant.stage == "imitation"
        cost = kinds.cost_of(Path(found[0]["workdir"])) if timed else None
        seconds = summary.seconds if summary else None
        lines.append([
            variant.label, success_text(summary), interval_text(summary), count_text(summary), difference_text(versus),
            None if seconds is None else f"{seconds:.0f}",
            None if cost is None else f"{cost.parameters / 1e6:.2f}",
            None if cost is None else f"{cost.decision_ms:.1f}",
            variant.paper.get("four suites"),
        ])  # fmt: skip
    note = (
        "success %: mean ± standard deviation (ddof 1) over seeds. 95 %: Wilson interval of all episodes pooled. n: "
        "episodes (seeds).\ndifference: points against QueST, paired on the same initial states, with its 95 % "
        "interval. seconds: demonstrations and\nthe policy's own stages up to imitation. M: millions of parameters "
        "of the policy. ms: the median decision for one episode.\npaper: the mean over LIBERO's four suites of ten "
        "tasks, from cameras, of the rows of Table 1, which are those of STAR's publication."
    )
    columns = ("", "success %", "95 %", "n", "difference", "seconds", "M", "ms", "paper: four suites")
    title = f"{outcome.experiment.title} Suite {outcome.options.suite.stem}, scale {outcome.options.scale}."
    table = Table(title, columns, lines, note)
    table.write(outcome.folder)
    runner.telemetry.show(table.as_text())
    runner.plots.success(outcome.folder / "success.png", outcome.variants, outcome.rows)


EXPERIMENT = runner.Experiment(
    "baselines_il", __doc__ or "", rows, _REFERENCE, paper_columns=("four suites",), standard=False, finish=finish
)  # fmt: skip

if __name__ == "__main__":
    runner.start(EXPERIMENT)

"""What the data allows: the base policy between behaviour cloning, its codebook's ceiling and its own sampling.

Behaviour cloning is an MLP on the same demonstrations. The codebook's ceiling executes the same chunks after they were
encoded and decoded: a policy that chooses skills as well as the codebook permits. Imitation is the base policy, once
taking the likeliest token each time and once sampling as it is evaluated everywhere. What lies between two rows is what
the codebook, the prior, or the sampling costs. R-SFT and SPO are not run.
"""

from harness import runner
from harness.results import Row
from harness.tables import (
    Table,
    by_seed_text,
    count_text,
    difference,
    difference_text,
    interval_text,
    success_text,
    summarise,
)
from harness.variants import Variant

from cso_jax.statistics import wilson

_ALONE = {"rsft.enabled": False, "reference.enabled": True}
_REFERENCE = "reference"
VARIANTS = (
    Variant("reference", "behaviour cloning", _ALONE, stage="reference"),
    Variant("ceiling", "codebook ceiling", _ALONE, stage="ceiling"),
    Variant("greedy", "imitation, greedy", _ALONE, stage="greedy"),
    Variant("imitation", "imitation, sampled", _ALONE, stage="imitation"),
)


def pooled(outcome: runner.Outcome) -> Table:
    """One row per way to act, all seeds together."""
    base = outcome.rows[_REFERENCE]
    lines = []
    for variant in outcome.variants:
        found = outcome.rows[variant.name]
        summary = summarise(found)
        versus = None if variant.name == _REFERENCE or not found or not base else difference(found, base)
        lines.append([
            variant.label, success_text(summary), interval_text(summary), count_text(summary),
            difference_text(versus), None if versus is None else by_seed_text(found, base),
        ])  # fmt: skip
    note = (
        "success %: mean ± standard deviation (ddof 1) over seeds. 95 %: Wilson interval of all episodes pooled. n: "
        "episodes (seeds).\ndifference: points against behaviour cloning, paired on the same initial states, with its "
        "95 % interval; by seed: the\nsame of each seed [Student's 95 % interval over seeds]."
    )
    columns = ["", "success %", "95 %", "n", "difference", "by seed"]
    title = f"{outcome.experiment.title} Suite {outcome.options.suite.stem}, scale {outcome.options.scale}."
    return Table(title, columns, lines, note)


def per_seed(outcome: runner.Outcome) -> Table:
    """The same, a column for each seed."""
    seeds = outcome.options.seeds
    lines = []
    for variant in outcome.variants:
        by_seed = {row["seed"]: row for row in outcome.rows[variant.name]}
        lines.append([variant.label, *(_cell(by_seed[seed]) if seed in by_seed else None for seed in seeds)])
    note = "success %, its Wilson 95 % interval, successes/episodes."
    return Table("The same by seed.", ["", *(f"seed {seed}" for seed in seeds)], lines, note)


def _cell(row: Row) -> str:
    low, high = wilson(row["successes"], row["episodes"])
    counts = f"{row['successes']}/{row['episodes']}"
    return f"{100 * row['success']:.1f} [{100 * low:.1f}, {100 * high:.1f}] {counts}"


def finish(outcome: runner.Outcome) -> None:
    for name, table in (("table", pooled(outcome)), ("by_seed", per_seed(outcome))):
        table.write(outcome.folder, name)
        runner.telemetry.show(table.as_text())
    runner.plots.success(outcome.folder / "success.png", outcome.variants, outcome.rows)


EXPERIMENT = runner.Experiment(
    "base_policy", __doc__ or "", lambda _: VARIANTS, _REFERENCE, standard=False, finish=finish, base=False
)  # fmt: skip

if __name__ == "__main__":
    runner.start(EXPERIMENT)

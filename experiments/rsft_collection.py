"""Which rollouts serve R-SFT: the three readings of the N-strikes rule, and how hot the collecting policy samples.

Every row has the same number of rollouts per task (twice the suite's successes per task), keeps all their successes
and is fine-tuned by the suite's settings. Algorithm 1 runs ten from each initial state; Appendix E.2, read as "up to
ten", goes on to the next state at the first success; Appendix G takes a new state each time. Section 4.1 and Appendix
G ask for a high temperature and top-k, without numbers. Policies are compared as they are evaluated: at
config.sampling's temperature and top-k, whatever they were collected with.
"""

import itertools

from harness import runner, variants
from harness.results import mean_of
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
from ml_collections import ConfigDict

from cso_jax.rollout.groups import STRIKE_RULES

_TEMPERATURES = (1.0, 1.3, 1.6)
_TOP_K = (5, 20, 0)
_REFERENCE = "algorithm"


def collections(config: ConfigDict) -> list[Variant]:
    budget = 2 * config.rsft.successes_per_task
    same = {"rsft.max_rollouts_per_task": budget, "rsft.successes_per_task": budget}
    rules = [
        Variant(rule, f"rule {rule}", same | _collected(rule, 1.0, 5), stage="rsft") for rule in STRIKE_RULES
    ]  # fmt: skip
    hotter = [
        Variant(
            f"t{temperature}-k{top_k}", f"new_state, T {temperature}, top-k {top_k or 'off'}",
            same | _collected("new_state", temperature, top_k), stage="rsft",
        )
        for temperature, top_k in itertools.product(_TEMPERATURES, _TOP_K)
        if (temperature, top_k) != (1.0, 5)
    ]  # fmt: skip
    return [variants.imitation(), *rules, *hotter]


def _collected(rule: str, temperature: float, top_k: int) -> dict:
    return {"rsft.strike_rule": rule, "rsft.temperature": temperature, "rsft.top_k": top_k}


def table_of(outcome: runner.Outcome) -> Table:
    base = outcome.rows[_REFERENCE]
    lines = []
    for variant in outcome.variants:
        found = outcome.rows[variant.name]
        summary = summarise(found)
        counts = [mean_of(found, f"{name}_per_task") for name in ("rollouts", "states", "kept")]
        versus = None if variant.name == _REFERENCE or not found or not base else difference(found, base)
        lines.append([
            variant.label, *(None if variant.stage != "rsft" or n is None else f"{n:.0f}" for n in counts),
            success_text(summary), interval_text(summary), count_text(summary), difference_text(versus),
            None if versus is None else by_seed_text(found, base),
        ])  # fmt: skip
    columns = ["", "rollouts", "states", "successes", "success %", "95 %", "n (seeds)", "difference", "by seed"]
    note = (
        "rollouts, states, successes: of the collection, per task, mean over tasks and seeds. success %: after R-SFT, "
        f"held-out states. difference: points against {_REFERENCE}, in pairs."
    )
    return Table(f"Claim: {outcome.experiment.title}", columns, lines, note)


def finish(outcome: runner.Outcome) -> None:
    table = table_of(outcome)
    table.write(outcome.folder)
    runner.plots.success(outcome.folder / "success.png", outcome.variants, outcome.rows)
    runner.telemetry.show(table.as_text())


EXPERIMENT = runner.Experiment(
    "rsft_collection", __doc__ or "", collections, _REFERENCE, standard=False, finish=finish
)  # fmt: skip

if __name__ == "__main__":
    runner.start(EXPERIMENT)

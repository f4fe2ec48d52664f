"""The learning rate and clip range of every granularity, found with the same effort for each; not in the paper.

Nine runs per granularity: the paper's range and two wider ones, each at half, once and twice the suite's learning rate,
for half of the suite's iterations. Use seeds that nothing else reports (`--seeds=11,12`), and compare what wins on
others.
"""

from collections.abc import Mapping, Sequence

from harness import results, runner, tables, variants
from harness.variants import Variant
from ml_collections import ConfigDict

_FACTORS = (0.5, 1.0, 2.0)
_REFERENCE = "spo"
_LAST = 5  # iterations of training reward
# (granularity, its changes, three ranges of its ratio: the paper's, or its own paper's, first)
GRID = (
    ("skill", variants.SKILL_RATIOS, ((0.93, 1.15), (0.8, 1.3), (0.6, 1.6))),
    ("trajectory", variants.GSPO, ((0.997, 1.004), (0.9, 1.15), (0.6, 1.6))),
    ("trajectory, normalised", variants.GSPO_NORMALISED, ((1 - 3e-4, 1 + 4e-4), (0.997, 1.004), (0.97, 1.04))),
    ("token", variants.GRPO, ((0.8, 1.28), (0.9, 1.1), (0.6, 1.6))),
)


def grid(config: ConfigDict) -> list[Variant]:
    """Every granularity with every range at every rate."""
    made = []
    iterations = max(1, config.spo.iterations // 2)
    for unit, changes, ranges in GRID:
        for low, high in ranges:
            for factor in _FACTORS:
                rate = factor * config.spo.learning_rate
                is_spo = (unit, low, factor) == ("skill", ranges[0][0], 1.0)
                name = _REFERENCE if is_spo else f"{unit.replace(', ', '-')}-{low:g}-{high:g}-{rate:g}"
                own = {"spo.learning_rate": rate, "spo.iterations": iterations}
                label = f"{unit} [{low:g}, {high:g}], {rate:g}"
                made.append(Variant(name, label, variants.clipped(changes, low, high) | own))
    return made


def _unit(variant: Variant) -> str:
    return variant.label.partition(" [")[0]


def best(found: Sequence[Variant], rows: Mapping[str, Sequence[results.Row]]) -> list[Variant]:
    """Of every granularity that has rows the variant with the highest success, all its episodes pooled."""
    chosen = []
    for unit, *_ in GRID:
        tried = [(tables.summarise(rows.get(one.name, ())), one) for one in found if _unit(one) == unit]
        rated = [(summary.successes / summary.episodes, one) for summary, one in tried if summary is not None]
        if rated:
            chosen.append(max(rated, key=lambda pair: pair[0])[1])
    return chosen


def finish(outcome: runner.Outcome) -> None:
    lines = []
    for one in best(outcome.variants, outcome.rows):
        rows = outcome.rows[one.name]
        rewards = [
            values[-_LAST:]
            for _, values in (results.series_of(row, "train_success_task_mean") for row in rows)
            if values
        ]
        reward = sum(map(sum, rewards)) / sum(map(len, rewards)) if rewards else None
        summary = tables.summarise(rows)
        lines.append(
            [one.label, tables.success_text(summary), tables.interval_text(summary), tables.count_text(summary),
             tables.percent_text(reward)]
        )  # fmt: skip
    title = f"The best of nine per granularity. Suite {outcome.options.suite.stem}, scale {outcome.options.scale}."
    note = (
        "Chosen by the success in this table, which is therefore too high: compare on other seeds. reward %: training "
        f"rollouts of the last {_LAST} iterations."
    )
    table = tables.Table(title, ("", "success %", "95 %", "n", "reward %"), lines, note)
    table.write(outcome.folder, "best")
    runner.telemetry.show(table.as_text())


EXPERIMENT = runner.Experiment("tuning", __doc__ or "", grid, _REFERENCE, finish=finish)

if __name__ == "__main__":
    runner.start(EXPERIMENT)

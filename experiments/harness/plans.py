"""Which runs an experiment consists of: the base of each seed, and every variant beside it."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from cso_jax import config as configs
from cso_jax.stages import table
from harness import workdirs
from harness.options import Options, scale_overrides, text_of, usable_cpus
from harness.variants import Variant

_ROUND_SEEDS = 20

# What runs unless a variant says otherwise. The references are the same beside every variant of a seed: the base has
# them where the suite does.
_WHOLE = {"rsft.enabled": "true"}
_SWITCHES = _WHOLE | {"reference.enabled": "false"}

MakeVariants = Callable[[ConfigDict], Sequence[Variant]]
"""The rows of an experiment, for a suite's config."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """One run: what `one_run.py` is told, and what tells that it has finished: the evaluations `stages`."""

    variant: Variant
    seed: int
    config: ConfigDict
    overrides: Sequence[tuple[str, str]]
    workdir: Path
    base: Path | None
    stages: tuple[str, ...]
    log_ratios: bool
    round_overrides: Sequence[Sequence[tuple[str, str]]] = ()

    @property
    def result(self) -> tuple[Path, str]:
        """Where the policy that counts was evaluated, and as which stage."""
        return (self.workdir / "last", "imitation") if self.round_overrides else (self.workdir, self.variant.stage)

    @property
    def rounds(self) -> list[Path]:
        """The workdirs of an iterative run's rounds."""
        return [self.workdir / f"round_{number + 1}" for number in range(len(self.round_overrides))]

    @property
    def done(self) -> bool:
        if self.round_overrides:
            return (self.workdir / "last" / "report.html").exists()
        if self.log_ratios and not (self.workdir / "log_ratios.npz").exists():
            return False
        return workdirs.complete(self.workdir, self.config, self.stages)

    def job(self, options: Options, commit: str | None) -> str:
        workers = max(1, usable_cpus() // options.jobs)
        neutral = [("report.videos", "0")]
        if options.jobs > 1:
            neutral += [("rollout.workers", str(workers)), ("demos.processes", str(workers))]
        return json.dumps(
            {
                "suite": str(options.suite),
                "overrides": list(self.overrides),
                "neutral": neutral,
                "workdir": str(self.workdir),
                "base": None if self.base is None else str(self.base),
                "rounds": self.variant.rounds,
                "round_overrides": [list(changes) for changes in self.round_overrides],
                "log_ratios": self.log_ratios,
                "notes": {"variant": self.variant.name, "seed": self.seed, "commit": commit, "jobs": options.jobs},
            }
        )


def make_plans(
    make_variants: MakeVariants, options: Options, *, log_ratios: bool = False, needs_base: bool = True
) -> tuple[list[Plan], list[Plan], Sequence[Variant]]:
    """The base run of each seed, the run of each variant and seed, and the variants.

    Variants of one config share a run; one that ends before SPO and changes nothing is the base run itself. Where no
    base is needed there are none to run, and a variant starts from one only if another experiment has finished it.
    Raises ConfigError for a suite that cannot be read or cannot have a variant.
    """
    scale = scale_overrides(options.suite, options.scale)
    chosen = make_variants(configs.load(options.suite, list(scale.items())))
    bases = [_base_plan(options, scale | {"seed": str(seed)}, seed) for seed in options.seeds]
    runs = [
        _variant_plan(options, variant, scale | {"seed": str(base.seed)}, base, log_ratios)
        for base in bases
        for variant in chosen
    ]
    if not needs_base:
        finished = [base.workdir for base in bases if base.done]
        runs = [one if one.base in finished else dataclasses.replace(one, base=None) for one in runs]
    return bases if needs_base else [], _together(runs), chosen


def _together(runs: Sequence[Plan]) -> list[Plan]:
    """The plans; those of one run are done when all that they evaluate is."""
    stages: dict[Path, dict[str, None]] = {}
    for one in runs:
        stages.setdefault(one.workdir, {}).update(dict.fromkeys(one.stages))
    return [dataclasses.replace(one, stages=tuple(stages[one.workdir])) for one in runs]


def _base_plan(options: Options, common: Mapping[str, str], seed: int) -> Plan:
    overrides = list((dict(common) | _WHOLE | {"spo.enabled": "false"}).items())
    config = configs.load(options.suite, overrides)
    workdir = options.out / "base" / f"seed_{seed}"
    _refuse_another_config(workdir, config)
    stages = tuple(one.name for one in table.evaluations(config))
    return Plan(Variant("base", "base", {}), seed, config, overrides, workdir, None, stages, False)


def _refuse_another_config(workdir: Path, config: ConfigDict) -> None:
    stored = workdir / "config.json"
    different = configs.differences(json.loads(stored.read_text()), config) if stored.exists() else {}
    different.pop("reference.enabled", None)  # of before bases had the references: the run adds them
    if different:
        first = next(iter(different.values()))
        raise configs.ConfigError(f"{workdir} was made with another suite or scale ({first}); use another --out")


def _variant_plan(options: Options, variant: Variant, common: Mapping[str, str], base: Plan, log_ratios: bool) -> Plan:
    changes = {key: text_of(value) for key, value in variant.changes.items()}
    is_base = variant.stage != "spo" and not variant.changes
    enabled = (_WHOLE if is_base else _SWITCHES) | {"spo.enabled": text_of(variant.stage == "spo")}
    overrides = list((dict(common) | enabled | changes).items())
    try:
        config = configs.load(options.suite, overrides)
    except configs.ConfigError as error:
        raise configs.ConfigError(f"{variant.name}: {error}") from None
    if variant.stage not in [one.name for one in table.evaluations(config)]:
        raise configs.ConfigError(f"{variant.name}: the suite's policy, {config.policy.name}, has no {variant.stage}")
    parent = options.out / "runs"
    rounds: Sequence[Sequence[tuple[str, str]]] = ()
    stages: tuple[str, ...] = (variant.stage,)
    if variant.rounds > 1:
        rounds = round_overrides(config, variant.rounds, base.seed)
        workdir = workdirs.folder(parent / f"rounds_{variant.rounds}", variant.name, config) / f"seed_{base.seed}"
    elif configs.fingerprint(config) == configs.fingerprint(base.config):
        workdir, stages = base.workdir, base.stages
    else:
        workdir = workdirs.folder(parent, variant.name, config) / f"seed_{base.seed}"
    return Plan(
        variant, base.seed, config, overrides, workdir, base.workdir, stages,
        log_ratios and variant.stage == "spo", rounds,
    )  # fmt: skip


def round_overrides(config: ConfigDict, rounds: int, seed: int) -> list[list[tuple[str, str]]]:
    """Each round's share of the budget of R-SFT (successes, rollouts, steps) and SPO (iterations), rounded up.

    A round has a seed of its own, so that it learns from initial states of its own.
    """

    def share(value: int) -> str:
        return str(-(-value // rounds))

    return [
        [
            ("seed", str(seed + _ROUND_SEEDS * number)),
            ("rsft.successes_per_task", share(config.rsft.successes_per_task)),
            (
                "rsft.max_rollouts_per_task",
                str(max(-(-config.rsft.max_rollouts_per_task // rounds), config.rsft.strikes)),
            ),
            ("rsft.steps", share(config.rsft.steps)),
            ("spo.iterations", share(config.spo.iterations)),
            ("evaluation.episodes_per_task", "1"),
        ]
        for number in range(rounds)
    ]

"""Every script: its variants differ from each other and from the suite in the documented keys, and in nothing else."""

import importlib
import json
from pathlib import Path

import pytest
from harness import variants
from harness.options import Options
from harness.plans import make_plans

from cso_jax import config as configs

ROOT = Path(__file__).parents[2]
SUITES = {"fake": ROOT / "tests/configs/fake.py", "quickstart": ROOT / "configs/quickstart.py"}
# All but the table that is made of what the others left.
SCRIPTS = sorted(path.stem for path in (ROOT / "experiments").glob("*.py") if path.stem not in ("main_table", "cited"))


def plans(script, tmp_path, suite="fake", scale="small"):
    experiment = importlib.import_module(script).EXPERIMENT
    options = Options(SUITES[suite], (1,), scale, tmp_path, 1)
    return make_plans(experiment.variants, options, log_ratios=experiment.log_ratios)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("script", SCRIPTS)
def test_variants_change_what_they_document(script, suite, tmp_path):
    bases, cells, chosen = plans(script, tmp_path, suite)
    assert len(cells) == len(chosen) and len({variant.name for variant in chosen}) == len(chosen)
    experiment = importlib.import_module(script).EXPERIMENT
    assert experiment.reference in {variant.name for variant in chosen}
    suite_config = json.loads(configs.to_json(configs.load(SUITES[suite], [("seed", "1")])))
    for one in cells:
        changed = set(configs.differences(suite_config, one.config))
        switches = {"reference.enabled"} if one.config.spo.enabled else {"spo.enabled"}
        if one.variant.stage != "spo" and one.variant.changes:
            switches = {"reference.enabled", "spo.enabled"}
        assert changed <= set(one.variant.changes) | switches, one.variant.name
        for key, value in one.variant.changes.items():
            assert configs.flatten(one.config)[key] == value
        is_base = one.variant.stage != "spo" and not one.variant.changes
        direct = script == "base_policy" or one.variant.stage in ("reference", "ceiling")
        once = direct or (is_base and suite_config["reference"]["enabled"])
        assert one.config.reference.enabled == once  # not beside every variant
        if is_base:
            assert one.workdir == bases[0].workdir
        assert set(one.variant.paper) <= set(experiment.paper_columns)


def test_granularities_are_the_papers():
    def summary(changes):
        return tuple(changes[f"spo.{name}"] for name in ("unit", "clip_low", "clip_high", "length_normalise"))

    assert summary(variants.SKILL_RATIOS) == ("skill", 0.93, 1.15, False)
    assert summary(variants.GRPO) == ("token", 0.8, 1.28, False)
    assert summary(variants.GSPO) == ("trajectory", 0.997, 1.004, False)
    assert summary(variants.GSPO_NORMALISED) == ("trajectory", 1 - 3e-4, 1 + 4e-4, True)
    shared = {"spo.baseline": "mean", "spo.normalise_std": False}
    for changes in (variants.SKILL_RATIOS, variants.GRPO, variants.GSPO, variants.GSPO_NORMALISED):
        assert shared.items() <= changes.items()


def test_methods_differ_from_spo_in_these_keys_alone():
    ratio = {"spo.unit", "spo.clip_low", "spo.clip_high"}
    expected = {
        "GRPO": ratio,
        "GSPO": ratio,
        "GSPO_NORMALISED": ratio | {"spo.length_normalise"},
        "PPO": {"spo.critic"},
        "RIPT": ratio | {"rsft.enabled", "spo.average", "spo.baseline"},
        "GRAPE": {"rsft.enabled", "spo.objective"},
        "REINFORCE": {"rsft.enabled", "spo.objective", "spo.baseline"},
        "SPO_ONLY": {"rsft.enabled"},
        "NOT_FROZEN": {"spo.freeze_encoder"},
    }
    for name, keys in expected.items():
        changes = getattr(variants, name)
        assert changes.keys() >= variants.SPO.keys(), name
        assert {key for key, value in changes.items() if value != variants.SPO.get(key)} == keys, name


def test_one_config_is_one_run_whatever_its_name(tmp_path):
    _, first, _ = plans("granularity", tmp_path)
    _, second, _ = plans("clipping", tmp_path)
    by_name = {one.variant.name: one.workdir for one in [*second, *first]}
    assert by_name["skill-0.93-1.15"] == by_name["spo"]
    assert by_name["token-0.8-1.28"] == by_name["grpo"]
    assert by_name["trajectory-0.997-1.004"] == by_name["gspo"]
    assert len({one.workdir for one in second}) == len(second)


def test_a_loop_shares_its_budget(tmp_path):
    _, cells, _ = plans("iterative", tmp_path)
    loop = cells[1]
    rounds = [dict(changes) for changes in loop.round_overrides]
    assert len(rounds) == 3 and loop.workdir != cells[0].workdir
    assert [changes["spo.iterations"] for changes in rounds] == ["1", "1", "1"]
    assert [changes["rsft.successes_per_task"] for changes in rounds] == ["2", "2", "2"]
    assert [changes["seed"] for changes in rounds] == ["1", "21", "41"]
    assert loop.result == (loop.workdir / "last", "imitation")


def test_paper_scale_raises_what_is_smaller(tmp_path):
    _, cells, _ = plans("critic", tmp_path, "quickstart", "paper")
    assert cells
    for one in cells:
        assert one.config.spo.iterations == 60  # the suite's
        assert (one.config.spo.groups, one.config.spo.group_size) == (150, 8)
        assert one.config.evaluation.episodes_per_task == 50
        assert one.config.rsft.max_rollouts_per_task >= 5 * one.config.rsft.successes_per_task == 1000
        assert one.config.spo.learning_rate == 5e-5  # the suite's


def test_the_decomposition_of_the_base_policy_runs_alone(tmp_path):
    """One run per seed, without R-SFT or SPO, that is done when all four are evaluated; no base is made for it."""
    experiment = importlib.import_module("base_policy").EXPERIMENT
    options = Options(SUITES["fake"], (1, 2), "small", tmp_path, 1)
    bases, cells, chosen = make_plans(experiment.variants, options, needs_base=experiment.base)
    assert bases == [] and len({one.workdir for one in cells}) == 2 and {one.base for one in cells} == {None}
    assert {one.stages for one in cells} == {("reference", "ceiling", "greedy", "imitation")}
    assert not any(one.config.rsft.enabled or one.config.spo.enabled for one in cells)
    assert [one.result[1] for one in cells[: len(chosen)]] == ["reference", "ceiling", "greedy", "imitation"]


def test_every_granularity_is_tuned_with_the_same_effort(tmp_path):
    tuning = importlib.import_module("tuning")
    _, cells, chosen = plans("tuning", tmp_path)
    units = [tuning._unit(one) for one in chosen]
    assert {unit: units.count(unit) for unit in units} == dict.fromkeys(
        ("skill", "trajectory", "trajectory, normalised", "token"), 9
    )
    assert len({one.workdir for one in cells}) == 36
    rates = {unit: {one.changes["spo.learning_rate"] for one in chosen if tuning._unit(one) == unit} for unit in units}
    assert len({frozenset(found) for found in rates.values()}) == 1


def test_the_best_of_a_granularity_is_chosen_by_all_its_episodes():
    tuning = importlib.import_module("tuning")
    config = configs.load(SUITES["quickstart"])
    chosen = tuning.grid(config)

    def row(successes, seed):
        return {"seed": seed, "success": successes / 50, "successes": successes, "episodes": 50, "metrics": []}

    skills = [one for one in chosen if tuning._unit(one) == "skill"]
    rows = {skills[0].name: [row(40, 1), row(30, 2)], skills[1].name: [row(38, 1), row(34, 2)]}
    assert tuning.best(chosen, rows) == [skills[1]]

"""Tables against a fixture with missing cells; log-ratios by unit against hand-worked constants; the main table."""

import dataclasses
import importlib
import json

import clipping
import numpy as np
import pytest
import robot
from harness import log_ratios, results, tables
from harness.log_ratios import LogRatios
from harness.variants import Variant

from cso_jax import config as configs
from cso_jax import defaults
from cso_jax.files import append_jsonl

VARIANTS = (
    Variant("a", "one & only", {}, paper={"Long": "96.0"}),
    Variant("b", "50 % of it", {}),
    Variant("c", "never run", {}, paper={"Long": "91.5 ± 0.7"}),
)

ROBOT = robot.methods(defaults.benchmark("tabletop"))


@pytest.fixture
def row(tmp_path):
    """Makes the row of a run with so many successes in ten episodes, and the episodes behind it."""

    def make(variant, seed, wins, **more):
        workdir = tmp_path / f"{variant}{seed}"
        append_jsonl(workdir / "episodes.jsonl", [
            {"stage": "spo", "task": "t", "init": f"eval:t:{seed}{i}", "seed": seed, "success": i < wins}
            for i in range(10)
        ])  # fmt: skip
        return {"workdir": str(workdir), "stage": "spo", "seed": seed, "successes": wins, "episodes": 10,
                "success": wins / 10, "clip_fraction": None, "seconds": None} | more  # fmt: skip

    return make


@pytest.fixture
def rows(row):
    """Variant a with seeds 1 and 2, variant b with seed 1 and without clip fraction or time; c is missing."""
    return {
        "a": [row("a", 1, 8, clip_fraction=0.1, seconds=60), row("a", 2, 6, clip_fraction=0.3, seconds=120)],
        "b": [row("b", 1, 5)],
    }


def test_table_with_missing_cells(rows, tmp_path):
    table = tables.compare("A title", VARIANTS, rows, reference="a", paper_columns=("Long",))
    first, second, third = table.cells()
    # sqrt(((0.8-0.7)^2 + (0.6-0.7)^2) / 1) = 0.1414; Wilson of 14 of 20: [48.1, 85.5].
    assert first[:6] == ["one & only", "70.0 ± 14.1", "[48.1, 85.5]", "20 (2)", "-", "-"]
    assert first[6:] == ["20.0", "-", "-", "-", "1.5", "96.0"]
    # Only seed 1 is paired: 3 of 10 episodes lost.
    assert second[:4] == ["50 % of it", "50.0", "[23.7, 76.3]", "10 (1)"]
    assert second[4].startswith("-30.0 [") and second[5:] == ["-30.0"] + ["-"] * 6
    assert third == ["never run"] + ["-"] * 10 + ["91.5 ± 0.7"]
    table.write(tmp_path)
    text, values, latex = ((tmp_path / f"table.{suffix}").read_text() for suffix in ("txt", "csv", "tex"))
    assert text.startswith("A title\n") and "paired on the same initial states" in text
    assert values.startswith(",success %,95 %,n,difference,by seed,clip %,cut %,rollouts,updates,time,paper: Long\n")
    assert values.splitlines()[3] == "never run,-,-,-,-,-,-,-,-,-,-,91.5 ± 0.7"
    assert "one \\& only & 70.0 $\\pm$ 14.1" in latex and "50 \\% of it" in latex
    with pytest.raises(ValueError, match="expected 2 cells, found 1"):
        tables.Table("", ("a", "b"), [["x"]]).as_text()


def test_runs_from_images_of_different_assets_are_not_pooled(row):
    def seen(seed, assets, renderer="egl official"):
        return row("a", seed, 5, renderer=renderer, versions={"mujoco": "3.3.0", "libero-assets": assets})

    assert tables.summarise([seen(1, "original"), seen(2, "original")]).episodes == 20
    assert tables.summarise([seen(1, "original", "none"), seen(2, "stand-ins", "none")]).episodes == 20
    with pytest.raises(configs.ConfigError, match=r"assets .original, stand-ins. are not pooled"):
        tables.summarise([seen(1, "original"), seen(2, "stand-ins")])


def test_clip_ranges_together(row):
    wins = {
        "skill-0.97-1.05": (5, 7),
        "skill-0.93-1.15": (6, 6),
        "token-0.9-1.1": (6, 7),
        "token-0.8-1.2": (9,),
        "token-0.8-1.28": (1, 1),
    }
    found = {
        name: [row(name, seed, count) for seed, count in enumerate(counts, start=1)] for name, counts in wins.items()
    }
    table = clipping.by_granularity(found, "A title")
    token, trajectory, skill = table.cells()
    # Seed 1 is all that the three ranges share: 0.6, 0.9, 0.1. Against skill in pairs, with every seed that a pair has:
    # seed 1 (+1 + 3)/20, seed 2 0/10, together 4/30; the third range has no skill runs beside it. Student's interval
    # of +20 and 0 points: 10 -+ 12.706 * 14.142 / sqrt(2).
    assert token[:4] == ["token, 3 of 3 ranges", "53.3", "10.0", "90.0"]
    assert token[4].startswith("+80.0 [") and token[5] == "30 (10 states, 3 runs)"
    assert token[6].startswith("+13.3 [") and token[7] == "+20.0 +0.0 [-117.1, +137.1]"
    assert trajectory == ["trajectory, 0 of 3 ranges"] + ["-"] * 7
    assert skill[:4] == ["skill, 2 of 3 ranges", "60.0", "60.0", "60.0"] and skill[5:] == [
        "40 (20 states, 4 runs)", "-", "-",
    ]  # fmt: skip


def test_an_empty_experiment_is_a_table_of_missing_cells():
    table = tables.compare("t", VARIANTS, {}, reference="a", paper_columns=())
    assert {cell for row in table.cells() for cell in row[1:]} == {"-"}


def test_outcomes_are_in_the_order_of_the_initial_states(tmp_path):
    append_jsonl(tmp_path / "episodes.jsonl", [
        {"stage": "spo", "task": "t", "init": f"eval:t:{n}", "success": n != 9} for n in (10, 9, 11)
    ] + [{"stage": "rsft", "task": "t", "init": "eval:t:9", "success": True}])  # fmt: skip
    assert results.outcomes_of({"workdir": str(tmp_path), "stage": "spo"}) == {"t": "011"}


def test_main_table_from_finished_runs(tmp_path, capsys):
    main_table = importlib.import_module("main_table")
    append_jsonl(tmp_path / "libero_long" / "components" / "results.jsonl", [
        {"variant": "spo", "seed": seed, "successes": 9, "episodes": 10, "success": 0.9} for seed in (1, 2)
    ])  # fmt: skip
    append_jsonl(tmp_path / "libero_long" / "baselines_rl" / "results.jsonl", [
        {"variant": "spo", "seed": 1, "successes": 9, "episodes": 10, "success": 0.9},
        {"variant": "ript", "seed": 1, "successes": 5, "episodes": 10, "success": 0.5},
    ])  # fmt: skip
    assert main_table.main([f"--out={tmp_path}", "--suite=libero_long,configs/libero_goal.py"]) == 0
    shown = capsys.readouterr().out
    lines = {line.split("  ")[0]: line.split() for line in shown.splitlines() if line}
    # Wilson of 18 of 20 and 5 of 10.
    assert lines["CSO"][1:] == [
        "measured",
        "90.0",
        "[69.9,",
        "97.2]",
        "20",
        "(2)",
        "96.0",
        "±",
        "0.5",
        "-",
        "97.4",
        "±",
        "0.2",
    ]
    assert lines["RIPT"][1:] == [
        "measured",
        "50.0",
        "[23.7,",
        "76.3]",
        "10",
        "(1)",
        "87.5",
        "±",
        "0.6",
        "-",
        "92.7",
        "±",
        "0.5",
    ]
    assert lines["REINFORCE"][1:] == ["-"] * 5
    assert lines["Octo"][1:] == ["cited", "-", "51.1", "±", "1.3", "-", "84.6", "±", "0.9"]
    assert "Goal: " in shown and "has no results of" in shown and "Long: " not in shown
    assert (tmp_path / "main_table" / "success.png").exists()
    assert main_table.main(["--out=" + str(tmp_path / "nowhere")]) == 1
    assert main_table.main(["--jobs=2", f"--out={tmp_path}"]) == 1
    assert main_table.main(["--suite=nowhere", f"--out={tmp_path}"]) == 1
    refusals = capsys.readouterr().err.splitlines()
    assert len(refusals) == 3 and "unknown option --jobs" in refusals[1]


def test_main_table_takes_ordinary_runs_of_suites_from_state(tmp_path, capsys):
    main_table = importlib.import_module("main_table")
    tasks = {"reach": {"successes": 9, "episodes": 10}, "push": {"successes": 8, "episodes": 10}}
    run = tmp_path / "metaworld_ml45_state" / "main" / "seed_2" / "results.json"
    run.parent.mkdir(parents=True)
    run.write_text(json.dumps({"config_hash": "x", "reference": tasks, "greedy": tasks}))
    assert main_table.main([f"--out={tmp_path}"]) == 0
    lines = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert lines["behaviour cloning"][-6:] == ["85.0", "[64.0,", "94.8]", "20", "(1)", "-"]
    assert lines["imitation (QueST)"][-2:] == ["-", "85.0"]
    assert main_table.main([f"--out={tmp_path}", "--seeds=1,3"]) == 0
    sources = "one_suite, components, baselines_il, baselines_rl or main"
    assert f"metaworld_ml45_state has no results of {sources} for seeds 1, 3." in capsys.readouterr().out


def test_main_table_takes_what_servers_were_asked(tmp_path, capsys):
    main_table = importlib.import_module("main_table")
    append_jsonl(tmp_path / "libero_goal" / "remote" / "pi0" / "evaluation_remote.jsonl", [
        {"stage": "remote", "task": "t", "init": f"bench:t:{n}", "seed": seed, "success": n > 0}
        for n in range(5) for seed in (1, 2, 7)
    ])  # fmt: skip
    assert main_table.main([f"--out={tmp_path}", "--suite=libero_goal"]) == 0
    lines = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert lines["π₀"][1:] == ["remote", "80.0", "[49.0,", "94.3]", "10", "(2)", "95.8", "±", "1.0"]


def test_cited_means_are_over_four_suites():
    cited = importlib.import_module("cited")
    assert [cited.four_suites(name) for name in ("imitation", "star", "spo")] == ["80.1", "94.3", "97.5"]


def test_log_ratios_by_unit():
    # Episode 0 (success): skills (0.1, 0.1) and (-0.3, 0.0); episode 1 (failure): (0.02, 0.0).
    ratios = LogRatios(
        np.array([[0.1, 0.1], [-0.3, 0.0], [0.02, 0.0]]),
        np.array([0, 0, 1]),
        np.array([True, False]),
        np.array([9, 20]),
    )
    np.testing.assert_array_equal(ratios.decisions, [2, 1])
    np.testing.assert_allclose(ratios.of_unit("skill")[0], [0.2, -0.3, 0.02])
    np.testing.assert_allclose(ratios.of_unit("trajectory")[0], [-0.1, 0.02])
    np.testing.assert_allclose(ratios.of_unit("trajectory, normalised")[0], [-0.1 / 4, 0.02 / 2])
    np.testing.assert_array_equal(ratios.of_unit("token")[1], [0, 0, 0, 0, 1, 1])
    with pytest.raises(ValueError, match="unit must be one of"):
        ratios.of_unit("episode")
    everything = np.ones(2, bool)
    spread = log_ratios.spread(ratios, "skill", everything, (0.93, 1.15))
    # exp(0.2) = 1.22 and exp(-0.3) = 0.74 are outside, exp(0.02) is not.
    assert (spread.episodes, spread.units, spread.decisions) == (2, 3, 1.5)
    np.testing.assert_allclose(spread.clip_fraction, 2 / 3)
    np.testing.assert_allclose([spread.mean, spread.std], [-0.08 / 3, np.std([0.2, -0.3, 0.02])])
    # Both are in the success: above the range there is no gradient, below it there is.
    np.testing.assert_allclose(spread.cut_fraction, 1 / 3)
    lost = log_ratios.spread(dataclasses.replace(ratios, success=~ratios.success), "skill", everything, (0.93, 1.01))
    np.testing.assert_allclose([lost.clip_fraction, lost.cut_fraction], [1, 2 / 3])
    assert log_ratios.spread(ratios, "skill", ~everything, (0.93, 1.15)) is None
    # First decisions: 0.2 and 0.02; only one episode has two.
    decisions, variance, independent = log_ratios.prefix_variance(ratios, everything, least=1)
    np.testing.assert_array_equal(decisions, [1, 2])
    np.testing.assert_allclose(variance, [0.09**2, 0.0], atol=1e-12)
    np.testing.assert_allclose(independent, [0.09**2, 0.0], atol=1e-12)
    assert len(log_ratios.prefix_variance(ratios, everything, least=3)[0]) == 0
    # Two episodes of skills (1, 1) and (-1, -1): variance 1 each, 4 together, 2 if independent.
    alike = LogRatios(np.array([[1.0], [1.0], [-1.0], [-1.0]]), np.array([0, 0, 1, 1]), np.array([True] * 2), None)
    np.testing.assert_allclose(log_ratios.prefix_variance(alike, everything, least=2)[1:], [[1, 4], [1, 2]])
    twice = log_ratios.together([ratios, ratios])
    assert len(twice.success) == 4 and twice.episode.tolist() == [0, 0, 1, 2, 2, 3]


@pytest.fixture
def on_the_arm(tmp_path):
    """One seed of CSO and none of the others: 4 of 5 buttons; of 8 sequences 6 reach stage 1 and 3 of those stage 2."""
    outcomes = [("press-button", [won]) for won in (1, 1, 1, 1, 0)]
    outcomes += [("sequential-placement", list(s)) for s in [(1, 1)] * 3 + [(1, 0)] * 3 + [(0, 0)] * 2]
    append_jsonl(tmp_path / "episodes.jsonl", [
        {"stage": "spo", "task": task, "init": f"eval:{task}:{i}", "seed": 1, "success": bool(all(stages)),
         "stages": [bool(stage) for stage in stages]}
        for i, (task, stages) in enumerate(outcomes)
    ])  # fmt: skip
    row = {"workdir": str(tmp_path), "stage": "spo", "seed": 1, "successes": 7, "episodes": 13, "success": 7 / 13}
    return {variant.name: [row] if variant.name == "spo" else [] for variant in ROBOT}


def test_success_on_the_arm_by_task_beside_the_paper(on_the_arm):
    table = robot.success_table(on_the_arm, ROBOT, "A title")
    assert table.columns == ["", "Press Button", "Sequential Placement", "all", "n per task (seeds)", "against CSO"]
    cells = {line[0]: line[1:] for line in table.cells()}
    # Wilson of 4 of 5, 3 of 8, 7 of 13.
    assert cells["CSO (simulated)"] == [
        "80.0 [37.6, 96.4]", "37.5 [13.7, 69.4]", "53.8 [29.1, 76.8]", "5-8 (1)", "-"
    ]  # fmt: skip
    assert cells["QueST + RIPT (simulated)"] == ["-"] * 5
    assert cells["CSO (paper)"] == ["80", "30", "61.0", "20", "-"]
    assert cells["VQ-BeT (paper)"][2] == "29.0"


def test_stages_count_where_those_before_were_done(on_the_arm):
    table = robot.stage_table(on_the_arm, ROBOT, "A title")
    assert table.columns == ["", "stage 1", "stage 2, given those before", "overall", "n"]
    cells = {line[0]: line[1:] for line in table.cells()}
    # Wilson of 6 of 8, 3 of 6, 3 of 8.
    assert cells["CSO (simulated)"] == ["75.0 [40.9, 92.9]", "50.0 [18.8, 81.2]", "37.5 [13.7, 69.4]", "8"]
    assert cells["imitation (QueST) (simulated)"] == ["-", "-", "-", "0"]
    assert cells["QueST (paper)"] == ["40", "25", "10", "20"]


def test_without_stages_there_is_no_table_of_them(rows):
    assert robot.stage_table(rows, VARIANTS, "A title") is None

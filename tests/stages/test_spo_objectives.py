"""Stage spo with the other objectives: what they learn from, log and leave; killed, a run ends as if it were not."""

import re
import shutil

import jax
import numpy as np
import pytest
from support import cascade
from support.cascade import CONFIG, metrics_of, policy_of, results_of, saved

from cso_jax import config as configs
from cso_jax import main
from cso_jax.files import read_jsonl
from cso_jax.rollout.groups import Outcome
from cso_jax.stages.spo.objectives.preference import pair_indices
from cso_jax.stages.spo.stage import task_mean

OBJECTIVES = {
    "critic": ("spo.critic=true",),
    "preference": ("spo.objective=preference",),
    "reinforce": ("spo.objective=reinforce", "spo.baseline=none"),
}
CLIPPING = {"clip_fraction", "cut_fraction", "clip_fraction_last"}
CRITIC = {"explained_variance", "mean_value", "value_loss"}
PREFERENCE = {"pairs", "preference_margin", "preference_accuracy"}
LOGGED = {"critic": CLIPPING | CRITIC, "preference": PREFERENCE, "reinforce": set()}


def test_every_task_counts_alike_in_the_training_reward():
    outcomes = [
        Outcome("hard", (False, False), mixed=False),
        Outcome("easy", (True,), mixed=False),
        Outcome("hard", (True, False), mixed=True),
    ]
    assert task_mean(outcomes) == (1 / 4 + 1) / 2


def test_pairs_use_every_attempt_once():
    assert pair_indices([False, True, True, False, False]) == [(1, 0), (2, 3)]
    assert pair_indices([True, True, False]) == [(0, 2)]
    assert pair_indices([True, True]) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"critic": "true", "freeze_encoder": "false"}, "needs config.spo.freeze_encoder=true"),
        ({"critic": "true", "objective": "preference"}, "has no advantages for a config.spo.critic"),
        ({"critic": "true", "baseline": "leave_one_out"}, "takes the place of config.spo.baseline"),
        ({"objective": "preference", "freeze_encoder": "false"}, "needs config.spo.freeze_encoder=true"),
        ({"objective": "preference", "minibatch_skills": "9"}, "a minibatch takes whole pairs"),
        ({"objective": "preference", "preference_beta": "0"}, "preference_beta must be positive"),
        ({"objective": "reinforc"}, "did you mean reinforce?"),
        ({"baseline": "none", "normalise_std": "true"}, "needs a config.spo.baseline"),
        ({"discount": "1.5"}, "config.spo.discount must be in"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(given, message):
    with pytest.raises(configs.ConfigError, match=re.escape(message)) as problem:
        configs.load(CONFIG, [(f"spo.{name}", value) for name, value in given.items()])
    assert len(str(problem.value).splitlines()) == 1


@pytest.fixture
def before_spo(tmp_path, finished):
    """A finished run without its last stage: makes a copy of the given name."""

    def copy(name):
        workdir = shutil.copytree(finished, tmp_path / name)
        shutil.rmtree(workdir / "checkpoints" / "spo")
        return workdir

    return copy


def check_rows(name, rows, iterations):
    """What every iteration logs, and what only this objective does."""
    assert [row["step"] for row in rows] == list(range(1, iterations + 1))
    taught = [row for row in rows if row["groups_kept"]]
    # Without a baseline, failures alone teach nothing: the gradient of such an iteration is exactly zero.
    teaches = [name != "reinforce" or row["train_success"] > 0 for row in taught]
    assert any(teaches) and [row["grad_norm"] > 0 for row in taught] == teaches
    for row in taught:
        assert LOGGED[name] <= row.keys()
        assert not (CLIPPING | CRITIC | PREFERENCE) - LOGGED[name] & row.keys()
        assert row["log_prob_drift"] < 1e-4 and row["updates"] >= 1
    if name == "preference":
        # Half of the mass on either side before the first update, and so about log 2 over the first few.
        assert abs(taught[0]["loss"] - np.log(2)) < 0.1
        assert all(1 <= row["pairs"] <= row["episodes"] / 2 for row in taught)
    else:  # groups of one outcome teach too: all that are drawn are kept
        assert all((row["groups_drawn"], row["groups_kept"], row["episodes"]) == (3, 3, 12) for row in rows)


def check_policy(name, workdir, iterations):
    """The policy has the parts of every other stage's, and only the prior was trained; a critic lies beside it."""
    step, tree, meta = saved(workdir, "spo")
    assert step == iterations and meta["final"]
    assert set(tree["trainable"]) == {"prior"}
    assert ("critic" in tree) == (name == "critic")
    assert cascade.changed_parts(policy_of(workdir, "rsft"), policy_of(workdir, "spo")) == {"prior"}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_from_the_groups_to_an_evaluated_policy(before_spo, name):
    workdir = before_spo(name)
    changes = (*OBJECTIVES[name], "spo.iterations=2", "report.videos=0")
    arguments = [f"--config={CONFIG}", f"--workdir={workdir}", *(f"--config.{change}" for change in changes)]
    assert main.main(arguments) == 0
    check_rows(name, metrics_of(workdir, "spo"), 2)
    check_policy(name, workdir, 2)
    evaluated = {stage: [row for row in read_jsonl(workdir / "episodes.jsonl") if row["stage"] == stage]
                 for stage in ("rsft", "spo")}  # fmt: skip
    inits = {stage: sorted(row["init"] for row in rows) for stage, rows in evaluated.items()}
    assert inits["spo"] == inits["rsft"] and len(set(inits["spo"])) == len(inits["spo"])
    for task, cell in results_of(workdir)["spo"].items():
        outcomes = [row["success"] for row in evaluated["spo"] if row["task"] == task]
        assert cell == {"successes": sum(outcomes), "episodes": len(outcomes)}
    assert results_of(workdir)["spo"].keys() == results_of(workdir)["rsft"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_interrupted_and_continued_is_bit_equal(before_spo, run_environment, name):
    changes = (*OBJECTIVES[name], "spo.iterations=6", "report.videos=0")
    whole, killed = before_spo("whole"), before_spo("killed")
    cascade.finish(whole, run_environment, *changes)
    process = cascade.start(killed, run_environment, *changes)
    try:
        cascade.wait_until(lambda: any((killed / "checkpoints" / "spo").glob("[0-9]*")), process)
    finally:
        cascade.kill(process)
    cascade.finish(killed, run_environment, *changes)
    left, right = saved(whole, "spo"), saved(killed, "spo")
    assert left[0] == right[0] and left[2] == right[2]
    jax.tree.map(np.testing.assert_array_equal, left[1], right[1])
    check_rows(name, metrics_of(whole, "spo"), 6)
    check_policy(name, whole, 6)
    if name == "critic":
        assert metrics_of(whole, "spo")[0]["explained_variance"] > 0.2

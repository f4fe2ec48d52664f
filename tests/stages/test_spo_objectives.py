"""Stage spo with the other objectives: what they learn from; a run that was killed ends as one that was not."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from cso_jax import config as configs
from cso_jax.checkpoints import Checkpoints
from cso_jax.files import read_jsonl
from cso_jax.stages.spo.material import pair_indices
from cso_jax.stages.spo.stage import task_mean

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "configs" / "fake.py"
OBJECTIVES = {
    "critic": ("spo.critic=true",),
    "preference": ("spo.objective=preference",),
    "reinforce": ("spo.objective=reinforce", "spo.baseline=none"),
}


def test_every_task_counts_alike_in_the_training_reward():
    outcomes = [("hard", False), ("hard", False), ("hard", True), ("easy", True), ("hard", False)]
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
    with pytest.raises(configs.ConfigError) as problem:
        configs.load(CONFIG, [(f"spo.{name}", value) for name, value in given.items()])
    assert message in str(problem.value)
    assert len(str(problem.value).splitlines()) == 1


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
    }


def command(workdir, *overrides):
    settings = (f"--config.{override}" for override in ("report.videos=0", *overrides))
    return [sys.executable, "-m", "cso_jax.main", f"--config={CONFIG}", f"--workdir={workdir}", *settings]


def finish(workdir, environment, *overrides):
    result = subprocess.run(
        command(workdir, *overrides), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def upstream(tmp_path_factory, environment):
    workdir = tmp_path_factory.mktemp("upstream")
    finish(workdir, environment, "spo.enabled=false")
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_interrupted_and_continued_is_bit_equal(tmp_path, environment, upstream, name):
    overrides = (*OBJECTIVES[name], "spo.iterations=6")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for workdir in (whole, killed):
        shutil.copytree(upstream, workdir)
    finish(whole, environment, *overrides)
    process = subprocess.Popen(command(killed, *overrides), cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        while not any((killed / "checkpoints" / "spo").glob("[0-9]*")):
            assert process.poll() is None
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    finish(killed, environment, *overrides)
    left, right = (Checkpoints(w / "checkpoints" / "spo").restore_latest(None) for w in (whole, killed))
    assert left[0] == right[0] == 6 and left[2] == right[2]
    jax.tree.map(np.testing.assert_array_equal, left[1], right[1])
    # The policy has the parts of every other stage's; a critic lies beside it.
    assert set(left[1]["trainable"]) == {"prior"}
    assert ("critic" in left[1]) == (name == "critic")
    rows = [row for row in read_jsonl(whole / "metrics.jsonl") if row["stage"] == "spo"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert max(row["log_prob_drift"] for row in rows) < 1e-4
    if name == "preference":
        assert abs(rows[0]["loss"] - np.log(2)) < 0.1 and rows[0]["pairs"] >= 3
    if name == "critic":
        assert rows[0]["explained_variance"] > 0.2 and rows[0]["groups_kept"] == 3
    if name == "reinforce":
        assert "clip_fraction" not in rows[0]

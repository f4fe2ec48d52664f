"""The runner: bad arguments, shared stages, runs that fail, and an experiment killed and started again."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from harness import log_ratios, runner, workdirs
from harness.options import parse, parse_seeds
from support import cascade
from support import tiny_experiment as tiny
from support.cascade import CONFIG as FAKE
from support.cascade import ROOT
from support.tiny_experiment import EXPERIMENT

from cso_jax import config as configs
from cso_jax.checkpoints import Checkpoints
from cso_jax.files import append_jsonl, read_jsonl

TASKS = ("left", "right", "up")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite=nowhere.py"], "nowhere.py"),
        (["--seeds=0"], "--seeds must be distinct, at least one"),
        (["--seeds=1,1"], "--seeds must be distinct"),
        (["--seeds=many"], "--seeds is how many (3) or which (1,2,3)"),
        (["--seeds=25"], "all below 20"),
        (["--scale=tiny"], "--scale must be one of smoke, small, paper"),
        (["--seeds=1000000000"], "all below 20"),
        (["--seeds=²"], "--seeds is how many (3) or which (1,2,3)"),
        (["--jobs=0"], "--jobs is the number of runs side by side"),
        (["--jobs=²"], "--jobs is the number of runs side by side"),
        (["--sede=1"], "unknown option --sede"),
        (["granularity"], "unexpected argument 'granularity'"),
        (["--config.spo.groups=3"], "is not for experiments"),
        (["--out=" + __file__], "--out must be a folder"),
        (["--out=" + __file__ + "/below"], "--out must be a folder to write to"),
    ],
)
def test_refusals_are_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert runner.main(EXPERIMENT, arguments) == 1
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["def get_config(:", "import no_such_package"])
def test_a_suite_that_is_no_config(capsys, tmp_path, text):
    suite = tmp_path / "broken.py"
    suite.write_text(text + "\n")
    assert runner.main(EXPERIMENT, [f"--suite={suite}", f"--out={tmp_path / 'out'}"]) == 1
    said = capsys.readouterr().err
    assert "broken.py" in said and "is not a config" in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_seeds():
    assert parse_seeds("3") == (1, 2, 3)
    assert parse_seeds("4,7") == (4, 7)
    assert parse_seeds("5,") == (5,)


def test_what_configs_share():
    def load(**changes):
        return configs.load(FAKE, [(key.replace("__", "."), value) for key, value in changes.items()])

    base = load(spo__enabled="false")
    everything = ["demos", "codebook", "imitation", "evaluate imitation", "rsft", "evaluate rsft"]
    assert workdirs.shared_stages(base, load(spo__clip_low="0.9")) == everything
    assert workdirs.shared_stages(base, load(rsft__enabled="false")) == everything[:4]
    assert workdirs.shared_stages(base, load(sampling__top_k="0")) == ["demos", "codebook", "imitation", "rsft"]
    assert workdirs.shared_stages(base, load(evaluation__episodes_per_task="9")) == [*everything[:3], "rsft"]
    assert workdirs.shared_stages(base, load(imitation__steps="9")) == everything[:2]
    assert workdirs.shared_stages(base, load(prior__layers="2")) == everything[:1]
    assert workdirs.shared_stages(base, load(autoencoder__strides="(2,2,2)")) == everything[:1]
    assert workdirs.shared_stages(base, load(seed="2")) == []
    assert workdirs.shared_stages(base, load(rollout__workers="1")) == everything


def pretend(one, _options, _commit, _stop):
    """A run that takes no time: the files that the runner looks at."""
    one.workdir.mkdir(parents=True, exist_ok=True)
    (one.workdir / "config.json").write_text(configs.to_json(one.config))
    cells = {"config_hash": configs.fingerprint(one.config)}
    rng = np.random.default_rng(one.seed)
    for stage in one.stages:
        cells[stage] = {}
        for task in TASKS:
            wins = rng.random(4) < (0.75 if one.variant.name == "spo" else 0.25)
            cells[stage][task] = {"successes": int(wins.sum()), "episodes": 4}
            append_jsonl(one.workdir / "episodes.jsonl", [
                {"stage": stage, "task": task, "init": f"eval:{task}:{one.seed}{i}", "seed": one.seed,
                 "success": bool(win), "versions": {"jax": "0"}} for i, win in enumerate(wins)
            ])  # fmt: skip
    if one.base is not None:
        append_jsonl(one.workdir / "metrics.jsonl", [
            {"stage": "spo", "step": n, "clip_fraction": 0.1 * n, "updates": 2, "train_success_task_mean": 0.5}
            for n in (1, 2)
        ])  # fmt: skip
        (one.workdir / "timing.json").write_text(json.dumps({"imitation": {"update": 60.0}, "spo": {"update": 30.0}}))
    (one.workdir / "results.json").write_text(json.dumps(cells))
    return 0


def test_outputs_of_finished_runs(tmp_path, capsys):
    arguments = [f"--suite={FAKE}", "--seeds=2", f"--out={tmp_path}", "--jobs=2"]
    assert runner.main(EXPERIMENT, arguments, run=pretend) == 0
    rows = read_jsonl(tmp_path / "tiny" / "results.jsonl")
    assert [(row["variant"], row["seed"]) for row in rows] == [("spo", 1), ("spo", 2), ("grpo", 1), ("grpo", 2)]
    assert rows[0]["episodes"] == 12 and rows[0]["updates"] == 4 and rows[0]["seconds"] == 90.0
    np.testing.assert_allclose(rows[0]["clip_fraction"], 0.15)
    assert not Path(rows[0]["workdir"]).is_absolute()
    assert sorted(rows[0]["outcomes"]) == sorted(TASKS) and all(len(o) == 4 for o in rows[0]["outcomes"].values())
    assert sum(o.count("1") for o in rows[0]["outcomes"].values()) == rows[0]["successes"]
    for name in ("table.txt", "table.csv", "table.tex", "success.png", "curves.png"):
        assert (tmp_path / "tiny" / name).stat().st_size > 100
    assert "24 (2)" in capsys.readouterr().out

    def never(one, *_):
        raise AssertionError(f"{one.workdir} ran again")

    assert runner.main(EXPERIMENT, arguments, run=never) == 0
    # Another suite in the same folder would mix two experiments.
    capsys.readouterr()
    assert runner.main(EXPERIMENT, [*arguments, "--scale=smoke"], run=never) == 1
    assert "was made with another suite or scale" in capsys.readouterr().err


def test_a_run_that_fails_leaves_a_missing_cell(tmp_path, capsys):
    def fails(one, *rest):
        if one.variant.name == "grpo":
            runner.log_of(one).parent.mkdir(parents=True, exist_ok=True)
            runner.log_of(one).write_text("error: the loss became nan\n")
            return 1
        return pretend(one, *rest)

    assert runner.main(EXPERIMENT, [f"--suite={FAKE}", "--seeds=1", f"--out={tmp_path}"], run=fails) == 1
    captured = capsys.readouterr()
    assert "ended with status 1: the loss became nan" in captured.err
    token = next(line for line in captured.out.splitlines() if line.startswith("token"))
    assert set(token.split()[1:]) == {"-"}


def test_parse_defaults():
    options = parse("tiny", [f"--suite={FAKE}", "--scale=smoke"])
    assert options.out.parts[-3:] == ("runs", "experiments", "fake_smoke")
    assert options.seeds == (1, 2, 3) and options.jobs >= 1


def experiment_command(tmp_path):
    return [sys.executable, tiny.__file__, f"--suite={FAKE}", "--seeds=1", f"--out={tmp_path / 'out'}", "--jobs=1"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_runner_and_its_runs(tmp_path, run_environment, number, status):
    process = subprocess.Popen(experiment_command(tmp_path), cwd=ROOT, env=run_environment, stderr=subprocess.PIPE,
                               text=True, start_new_session=True)  # fmt: skip
    log = tmp_path / "out" / "base" / "seed_1.log"
    try:
        cascade.wait_until(lambda: log.exists() and "workdir" in log.read_text(), process)
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=cascade.limit_s())
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == status
    assert "run the same command to go on" in said and "Traceback" not in said
    assert "SIGTERM: saving, then stopping" in log.read_text() and "Traceback" not in log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_between_variants_and_started_again(tmp_path, run_environment):
    command = experiment_command(tmp_path)
    process = subprocess.Popen(command, cwd=ROOT, env=run_environment, stderr=subprocess.DEVNULL, text=True)
    runs = tmp_path / "out" / "runs"
    try:
        cascade.wait_until(lambda: any(runs.glob("spo-*/seed_1/checkpoints/spo/[0-9]*")), process, seconds=1200)
    finally:
        cascade.kill(process)
    done = subprocess.run(command, cwd=ROOT, env=run_environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    rows = read_jsonl(tmp_path / "out" / "tiny" / "results.jsonl")
    assert [row["variant"] for row in rows] == ["spo", "grpo"]
    assert all(row["iterations"] == 3 and row["episodes"] == 12 for row in rows)
    base = tmp_path / "out" / "base" / "seed_1"
    workdirs = list(runs.glob("*/seed_1"))
    assert len(workdirs) == len(rows)
    for workdir in workdirs:
        # The stages before SPO are the base's own files, and its evaluations were not run again.
        notes = json.loads((workdir / "experiment.json").read_text())
        assert notes["shared"][-1] == "evaluate rsft"
        left, right = (Checkpoints(w / "checkpoints" / "rsft").restore_latest(None) for w in (base, workdir))
        np.testing.assert_array_equal(left[1]["step"], right[1]["step"])
        evaluated = [row["stage"] for row in read_jsonl(workdir / "episodes.jsonl")]
        assert {stage: evaluated.count(stage) for stage in evaluated} == {"imitation": 12, "rsft": 12, "spo": 12}
        # The measured episodes are those that the last update learned from, and the update moved their ratios.
        ratios = log_ratios.load(workdir / "log_ratios.npz")
        last = [row for row in read_jsonl(workdir / "metrics.jsonl") if row["stage"] == "spo"][-1]
        assert (len(ratios.success), len(ratios.tokens)) == (last["episodes"], last["skills"])
        np.testing.assert_allclose(ratios.steps[ratios.success].mean(), last["mean_steps_success"])
        assert 0.01 < np.abs(ratios.tokens).max() < 2.0

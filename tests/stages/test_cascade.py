"""The whole cascade on the fake environment: killed anywhere, bit-equal; bad input; stops; damage."""

import fcntl
import json
import shutil
import signal

import jax
import numpy as np
import pytest
from support import cascade
from support.cascade import CONFIG, metrics_of, policy_of, results_of, saved, sorted_episodes

from cso_jax.checkpoints import Checkpoints
from cso_jax.files import read_jsonl

STAGES = ("codebook", "imitation", "rsft", "spo")


@pytest.fixture
def again(tmp_path, finished):
    """A copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "again")


def assert_same_outcome(one, other):
    for stage in STAGES:
        left, right = saved(one, stage), saved(other, stage)
        assert left[0] == right[0], stage
        assert left[2] == right[2], stage
        flat_left, flat_right = cascade.flat(left[1]), cascade.flat(right[1])
        assert flat_left.keys() == flat_right.keys()
        for name, value in flat_left.items():
            np.testing.assert_array_equal(value, flat_right[name], err_msg=f"{stage} {name}")
    assert results_of(one) == results_of(other)
    assert sorted_episodes(one) == sorted_episodes(other)


def test_a_run_leaves_everything_that_is_promised(finished):
    results = results_of(finished)
    assert set(results) == {"config_hash", "imitation", "rsft", "spo"}
    for stage in ("imitation", "rsft", "spo"):
        assert {cell["episodes"] for cell in results[stage].values()} == {4}
    rows = read_jsonl(finished / "episodes.jsonl")
    assert len(rows) == 3 * 3 * 4
    assert all(row["init"].startswith("eval:") for row in rows)
    assert {"task", "seed", "success", "steps", "horizon", "renderer", "versions"} <= rows[0].keys()
    # The same initial states in every stage: comparisons are paired.
    inits = [sorted(row["init"] for row in rows if row["stage"] == stage) for stage in ("imitation", "rsft", "spo")]
    assert inits[0] == inits[1] == inits[2]
    spo = metrics_of(finished, "spo")
    assert [row["step"] for row in spo] == [1, 2, 3]
    drifts = [row["log_prob_drift"] for row in spo if row["groups_kept"]]
    assert drifts and max(drifts) < 1e-4
    assert (finished / "report.html").stat().st_size > 10_000


def test_spo_trains_the_prior_only(finished):
    assert cascade.changed_parts(policy_of(finished, "rsft"), policy_of(finished, "spo")) == {"prior"}


KILL_POINTS = {
    "demos": lambda w: (w / "demos" / "left.hdf5").exists(),
    "codebook": lambda w: (w / "checkpoints" / "codebook" / "20").exists(),
    "imitation": lambda w: (w / "checkpoints" / "imitation" / "20").exists(),
    "evaluation": lambda w: (w / "episodes.jsonl").exists(),
    "rsft collection": lambda w: (w / "rsft" / "wave_00000.hdf5").exists(),
    "rsft": lambda w: (w / "checkpoints" / "rsft" / "5").exists(),
    "spo": lambda w: (w / "checkpoints" / "spo" / "1").exists(),
    "last evaluation": lambda w: '"stage": "spo"' in (w / "episodes.jsonl").read_text(),
}


def test_killed_in_every_stage_and_started_again(tmp_path, run_environment, finished):
    workdir = tmp_path / "killed"
    for name, reached in KILL_POINTS.items():
        process = cascade.start(workdir, run_environment)
        try:
            cascade.wait_until(lambda reached=reached: reached(workdir), process, name)
        finally:
            cascade.kill(process)
    cascade.finish(workdir, run_environment)
    assert_same_outcome(finished, workdir)
    for stage in STAGES:
        steps = [row["step"] for row in metrics_of(workdir, stage)]
        assert steps and steps == sorted(set(steps)), f"{stage} logged a step twice"


def test_sigterm_saves_and_leaves(tmp_path, run_environment, finished):
    workdir = tmp_path / "stopped"
    process = cascade.start(workdir, run_environment)
    cascade.wait_until(lambda: (workdir / "checkpoints" / "imitation" / "20").exists(), process)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=cascade.limit_s())
    assert process.returncode == 143
    assert "run the same command to go on" in stderr
    cascade.finish(workdir, run_environment)
    assert_same_outcome(finished, workdir)


def test_damaged_checkpoint_and_episode_files_are_made_again(again, run_environment, finished):
    shutil.rmtree(again / "checkpoints" / "spo")
    whole = [path for path in (again / "checkpoints" / "imitation" / "200").rglob("*") if path.is_file()]
    assert whole
    for damaged in (*whole, again / "rsft" / "wave_00001.hdf5"):
        damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    assert "cannot be read" in cascade.finish(again, run_environment)
    assert_same_outcome(finished, again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["spo.clip_low=0.9"], "config.spo.clip_low: 0.93 in the workdir, 0.9 now"),
        (["spo.clip_lo=0.9"], "did you mean config.spo.clip_low?"),
        (["env.tasks=lefft"], "did you mean left?"),
        (["--confg=x"], "unknown option --confg"),
    ],
)
def test_refusals_are_one_line_and_change_nothing(again, run_environment, arguments, message):
    def files():
        return sorted((path, path.stat().st_mtime_ns) for path in (again / "checkpoints").rglob("*"))

    before = files()
    result = cascade.run(again, run_environment, *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert before and files() == before


def test_values_of_a_stage_that_has_not_begun_may_change(again, run_environment):
    shutil.rmtree(again / "checkpoints" / "spo")
    said = cascade.finish(again, run_environment, "spo.clip_low=0.9", "spo.epochs=2")
    assert json.loads((again / "config.json").read_text())["spo"]["clip_low"] == 0.9
    assert "imitation: 200/200" not in said


VARIANTS = {
    "pixels": ["env.obs=pixels", "env.cameras=camera", "env.image_size=16", "encoder.image_width=16", "rsft.augment=1"],
    "encoder trained": ["spo.freeze_encoder=false", "sampling.top_k=0", "rsft.demo_fraction=0.5"],
    "no R-SFT": ["rsft.enabled=false", "spo.unit=trajectory", "spo.length_normalise=true", "spo.epochs=2"],
    "no SPO": ["spo.enabled=false"],
    "guided": ["prior.guide=(16,)", "prior.head=digits", "rsft.demo_fraction=0.5",
               "codebook.action_weight=5.0", "codebook.mixed_share=0.5", "codebook.weighted_actions=4",
               "codebook.squared_weight=1.0", "prior.guide_decoded=1.0", "prior.guide_decoded_share=0.5",
               "spo.critic=true"],
    "coarse to fine": ["prior.guide=(16,)", "prior.head=digits", "prior.guide_decoded=1.0", "sampling.top_k=0",
                       "autoencoder.network=residual", "autoencoder.hidden=16", "spo.temperature=2.0"],
    "guided, from pixels, encoder trained": [
        "prior.guide=(16,)", "prior.guide_decoded=1.0", "env.obs=pixels", "env.cameras=camera", "env.image_size=16",
        "encoder.image_width=16", "spo.freeze_encoder=false",
    ],
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_the_cascade(tmp_path, run_environment, variant):
    # The other stages as in the finished run: its compiled programs are worth more than fewer steps.
    short = ["rsft.steps=2", "spo.iterations=1", "report.videos=0", *VARIANTS[variant]]
    cascade.finish(tmp_path, run_environment, *short, *(["imitation.steps=4"] if "pixels" in variant else []))
    results = results_of(tmp_path)
    skipped = {"no R-SFT": {"rsft"}, "no SPO": {"spo"}}.get(variant, set())
    assert set(results) == {"config_hash", "imitation", "rsft", "spo"} - skipped
    for row in read_jsonl(tmp_path / "metrics.jsonl"):  # what is scored is what was drawn
        assert row.get("log_prob_drift", 0) < 1e-4


def test_the_policy_of_the_lowest_validation_loss_is_kept_if_asked_for(tmp_path, run_environment):
    changes = ["imitation.keep=best", "imitation.validation_fraction=0.25", "imitation.learning_rate=0.02"]
    without = ["rsft.enabled=false", "spo.enabled=false", "report.videos=0", "evaluation.episodes_per_task=1"]
    said = cascade.finish(tmp_path, run_environment, *changes, *without)
    rows = [row for row in read_jsonl(tmp_path / "metrics.jsonl") if row["stage"] == "imitation"]
    lowest = min(rows, key=lambda row: row["validation_loss"])
    assert lowest["step"] < 200 and f"keeps the state after {lowest['step']} steps" in said
    last, kept, meta = Checkpoints(tmp_path / "checkpoints" / "imitation").restore_latest(None)
    assert (last, meta["final"]) == (200, True) and not (tmp_path / "checkpoints" / "imitation_best").exists()

    # The same outcome where it is stopped on the way, at a step that is no multiple of log_every.
    stopped = tmp_path / "stopped"
    process = cascade.start(stopped, run_environment, *changes, *without)
    cascade.wait_until(lambda: metrics_of(stopped, "imitation"), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(cascade.limit_s()) == 143
    cascade.finish(stopped, run_environment, *changes, *without)
    _, again, _ = Checkpoints(stopped / "checkpoints" / "imitation").restore_latest(None)
    jax.tree.map(np.testing.assert_array_equal, kept["trainable"], again["trainable"])


def test_two_runs_in_one_workdir(again, run_environment):
    with open(again / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = cascade.run(again, run_environment)
    assert result.returncode == 1
    assert "is in use by" in result.stderr
    assert "Traceback" not in result.stderr


def test_too_few_demonstrations(tmp_path, run_environment, finished):
    workdir = tmp_path / "few"
    shutil.copytree(finished / "demos", workdir / "demos")
    result = cascade.run(workdir, run_environment, "demos.per_task=15")
    assert result.returncode == 1
    assert "holds 12 demonstrations, config.demos.per_task asks for 15" in result.stderr


def test_an_expert_that_fails_too_often(tmp_path, run_environment):
    result = cascade.run(tmp_path, run_environment, "env.horizon=4", "spo.minibatch_skills=8")
    assert result.returncode == 1
    assert "the scripted expert of left succeeded in 0 of" in result.stderr


FAULTY = """
import runpy

from ml_collections import ConfigDict


def get_config():
    config = runpy.run_path({fake!r})["get_config"]()
    with config.unlocked():
        config.env.faults = ConfigDict({{"train:right:2": {{"kind": {kind!r}}}}})
    return config
"""


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("raise", "the scripted expert of right failed with FakeFault: told to fail"),
        ("die", "a process that made demonstrations of right ended with exit code 1"),
    ],
)
def test_what_an_expert_raises_is_one_line(tmp_path, run_environment, kind, said):
    workdir, config = tmp_path / "run", tmp_path / "faulty.py"
    config.write_text(FAULTY.format(fake=str(CONFIG), kind=kind))
    result = cascade.run(workdir, run_environment, config=config)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: {said}") and len(last) < 300 and "run the same command again" in last
    assert "Traceback" not in result.stderr
    assert (workdir / "demos" / "left.hdf5").exists()
    if kind == "raise":
        details = (workdir / "errors.log").read_text()
        assert "Traceback" in details and "train:right:2" in details


def test_nan_loss_stops_before_saving(tmp_path, run_environment):
    result = cascade.run(tmp_path, run_environment, "codebook.learning_rate=1e30", "codebook.clip_norm=1e30")
    assert result.returncode == 1
    assert "codebook: the loss or its gradient became" in result.stderr
    assert not list((tmp_path / "checkpoints" / "codebook").glob("[0-9]*"))


def test_a_policy_that_never_succeeds(tmp_path, run_environment):
    """No success for R-SFT, no informative group for SPO: said, and the policy is kept."""
    said = cascade.finish(tmp_path, run_environment, "imitation.steps=1", "env.horizon=12", "report.videos=0")
    assert "R-SFT: no success for left, right, up: left out" in said
    assert "no informative group among 9" in said
    assert not cascade.changed_parts(policy_of(tmp_path, "imitation"), policy_of(tmp_path, "spo"))


def test_other_architecture_is_refused(tmp_path, run_environment, finished):
    workdir = tmp_path / "wider"
    for name in ("demos", "checkpoints"):
        shutil.copytree(finished / name, workdir / name)
    shutil.rmtree(workdir / "checkpoints" / "spo")
    result = cascade.run(workdir, run_environment, "prior.width=48")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "another architecture" in result.stderr

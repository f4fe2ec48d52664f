"""The whole cascade on the fake environment: killed anywhere, bit-equal; bad input; stops; damage."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cso_jax.checkpoints import Checkpoints
from cso_jax.files import read_jsonl

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "configs" / "fake.py"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Child processes share compiled programs, which is most of what a short run costs."""
    cache = tmp_path_factory.mktemp("compiled")
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
    }


def command(workdir, *arguments):
    return [sys.executable, "-m", "cso_jax.main", f"--config={CONFIG}", f"--workdir={workdir}", *arguments]


def finish(workdir, environment, *arguments):
    return subprocess.run(
        command(workdir, *arguments), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory, environment):
    """A run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("finished")
    result = finish(workdir, environment)
    assert result.returncode == 0, result.stderr
    return workdir


def policies(workdir):
    stages = ("codebook", "imitation", "rsft", "spo")
    return {stage: Checkpoints(workdir / "checkpoints" / stage).restore_latest(None) for stage in stages}


def assert_same_outcome(one, other):
    left, right = policies(one), policies(other)
    for stage in left:
        assert left[stage][0] == right[stage][0], stage
        assert left[stage][2] == right[stage][2], stage
        flat_left, flat_right = _flat(left[stage][1]), _flat(right[stage][1])
        assert flat_left.keys() == flat_right.keys()
        for name, value in flat_left.items():
            np.testing.assert_array_equal(value, flat_right[name], err_msg=f"{stage} {name}")
    assert json.loads((one / "results.json").read_text()) == json.loads((other / "results.json").read_text())

    def rows(workdir):
        return sorted(json.dumps(row, sort_keys=True) for row in read_jsonl(workdir / "episodes.jsonl"))

    assert rows(one) == rows(other)


def _flat(tree, prefix=""):
    if isinstance(tree, dict):
        return {k: v for name, part in tree.items() for k, v in _flat(part, f"{prefix}/{name}").items()}
    if isinstance(tree, list | tuple):
        return {k: v for number, part in enumerate(tree) for k, v in _flat(part, f"{prefix}/{number}").items()}
    return {prefix: tree}


def test_a_run_leaves_everything_that_is_promised(finished):
    results = json.loads((finished / "results.json").read_text())
    assert set(results) == {"config_hash", "imitation", "rsft", "spo"}
    for stage in ("imitation", "rsft", "spo"):
        assert {cell["episodes"] for cell in results[stage].values()} == {4}
    rows = read_jsonl(finished / "episodes.jsonl")
    assert len(rows) == 3 * 3 * 4
    assert all(row["init"].startswith("eval:") for row in rows)
    assert {"task", "seed", "success", "steps", "horizon", "renderer", "versions"} <= rows[0].keys()
    # The same initial states in every stage: comparisons are paired.
    inits = {stage: sorted(row["init"] for row in rows if row["stage"] == stage) for stage in ("imitation", "spo")}
    assert inits["imitation"] == inits["spo"]
    spo = [row for row in read_jsonl(finished / "metrics.jsonl") if row["stage"] == "spo"]
    assert [row["step"] for row in spo] == [1, 2, 3]
    assert max(row.get("log_prob_drift", 0.0) for row in spo) < 1e-4
    assert (finished / "report.html").stat().st_size > 10_000


def test_spo_trains_the_prior_only(finished):
    saved = policies(finished)
    before, after = (_flat({**saved[s][1]["fixed"], **saved[s][1]["trainable"]}) for s in ("rsft", "spo"))
    changed = {name.split("/")[1] for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"prior"}


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


def test_killed_in_every_stage_and_started_again(tmp_path, environment, finished):
    workdir = tmp_path / "killed"
    for name, reached in KILL_POINTS.items():
        process = subprocess.Popen(
            command(workdir), cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 240
        while not reached(workdir):
            assert process.poll() is None, f"ended before {name}: {process.stderr.read()}"
            assert time.monotonic() < deadline, name
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
    result = finish(workdir, environment)
    assert result.returncode == 0, result.stderr
    assert_same_outcome(finished, workdir)
    for stage in ("codebook", "imitation", "rsft", "spo"):
        steps = [row["step"] for row in read_jsonl(workdir / "metrics.jsonl") if row["stage"] == stage]
        assert steps == sorted(set(steps)), f"{stage} logged a step twice"


def test_sigterm_saves_and_leaves(tmp_path, environment, finished):
    workdir = tmp_path / "stopped"
    process = subprocess.Popen(command(workdir), cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    while not (workdir / "checkpoints" / "imitation" / "20").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "run the same command to go on" in stderr
    assert finish(workdir, environment).returncode == 0
    assert_same_outcome(finished, workdir)


def test_damaged_checkpoint_and_episode_files_are_made_again(tmp_path, environment, finished):
    import shutil

    workdir = tmp_path / "damaged"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "checkpoints" / "spo")
    for damaged in (*(workdir / "checkpoints" / "imitation" / "200").rglob("*"), workdir / "rsft" / "wave_00001.hdf5"):
        if damaged.is_file():
            damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    result = finish(workdir, environment)
    assert result.returncode == 0, result.stderr
    assert "cannot be read" in result.stderr
    assert_same_outcome(finished, workdir)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.spo.clip_low=0.9"], "config.spo.clip_low: 0.93 in the workdir, 0.9 now"),
        (["--config.spo.clip_lo=0.9"], "did you mean config.spo.clip_low?"),
        (["--config.env.tasks=lefft"], "did you mean left?"),
        (["--confg=x"], "unknown option --confg"),
    ],
)
def test_refusals_are_one_line_and_change_nothing(finished, environment, arguments, message):
    before = sorted((p, p.stat().st_mtime_ns) for p in (finished / "checkpoints").rglob("*"))
    result = finish(finished, environment, *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted((p, p.stat().st_mtime_ns) for p in (finished / "checkpoints").rglob("*")) == before


def test_values_of_a_stage_that_has_not_begun_may_change(tmp_path, environment, finished):
    import shutil

    workdir = tmp_path / "again"
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "checkpoints" / "spo")
    result = finish(workdir, environment, "--config.spo.clip_low=0.9", "--config.spo.epochs=2")
    assert result.returncode == 0, result.stderr
    assert json.loads((workdir / "config.json").read_text())["spo"]["clip_low"] == 0.9
    assert "imitation: 200/200" not in result.stderr


VARIANTS = {
    "pixels": ["env.obs=pixels", "env.cameras=camera", "env.image_size=16", "encoder.image_width=16", "rsft.augment=1"],
    "encoder trained": ["spo.freeze_encoder=false", "sampling.top_k=0", "rsft.demo_fraction=0.5"],
    "no R-SFT": ["rsft.enabled=false", "spo.unit=trajectory", "spo.length_normalise=true", "spo.epochs=2"],
    "no SPO": ["spo.enabled=false"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_the_cascade(tmp_path, environment, variant):
    short = ["codebook.steps=100", "imitation.steps=100" if variant != "pixels" else "imitation.steps=4",
             "rsft.steps=2", "spo.iterations=1", "report.videos=0"]  # fmt: skip
    result = finish(tmp_path, environment, *(f"--config.{change}" for change in [*short, *VARIANTS[variant]]))
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    skipped = {"no R-SFT": {"rsft"}, "no SPO": {"spo"}}.get(variant, set())
    assert set(results) == {"config_hash", "imitation", "rsft", "spo"} - skipped


def test_two_runs_in_one_workdir(finished, environment):
    import fcntl

    with open(finished / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = finish(finished, environment)
    assert result.returncode == 1
    assert "is in use by" in result.stderr
    assert "Traceback" not in result.stderr


def test_too_few_demonstrations(tmp_path, environment, finished):
    import shutil

    workdir = tmp_path / "few"
    shutil.copytree(finished / "demos", workdir / "demos")
    result = finish(workdir, environment, "--config.demos.per_task=15")
    assert result.returncode == 1
    assert "holds 12 demonstrations, config.demos.per_task asks for 15" in result.stderr


def test_an_expert_that_fails_too_often(tmp_path, environment):
    result = finish(tmp_path, environment, "--config.env.horizon=4", "--config.spo.minibatch_skills=8")
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
def test_what_an_expert_raises_is_one_line(tmp_path, environment, kind, said):
    workdir, config = tmp_path / "run", tmp_path / "faulty.py"
    config.write_text(FAULTY.format(fake=str(CONFIG), kind=kind))
    result = finish(workdir, environment, f"--config={config}")
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: {said}") and len(last) < 300 and "run the same command again" in last
    assert "Traceback" not in result.stderr
    assert (workdir / "demos" / "left.hdf5").exists()
    if kind == "raise":
        details = (workdir / "errors.log").read_text()
        assert "Traceback" in details and "train:right:2" in details


def test_nan_loss_stops_before_saving(tmp_path, environment):
    result = finish(tmp_path, environment, "--config.codebook.learning_rate=1e30", "--config.codebook.clip_norm=1e30")
    assert result.returncode == 1
    assert "codebook: the loss or its gradient became" in result.stderr
    assert not list((tmp_path / "checkpoints" / "codebook").glob("[0-9]*"))


def test_a_policy_that_never_succeeds(tmp_path, environment):
    """No success for R-SFT, no informative group for SPO: said, and the policy is kept."""
    few = [f"--config.{stage}.steps=1" for stage in ("codebook", "imitation")]
    result = finish(tmp_path, environment, *few, "--config.env.horizon=12", "--config.report.videos=0")
    assert result.returncode == 0, result.stderr
    assert "R-SFT: no success for left, right, up: left out" in result.stderr
    assert "no informative group among 9" in result.stderr
    saved = policies(tmp_path)
    for name in ("encoder", "prior"):
        before, after = (
            _flat({**saved[stage][1]["fixed"], **saved[stage][1]["trainable"]}[name]) for stage in ("imitation", "spo")
        )
        for leaf, value in before.items():
            np.testing.assert_array_equal(value, after[leaf])


def test_other_architecture_is_refused(tmp_path, environment, finished):
    import shutil

    workdir = tmp_path / "wider"
    for name in ("demos", "checkpoints"):
        shutil.copytree(finished / name, workdir / name)
    shutil.rmtree(workdir / "checkpoints" / "spo")
    result = finish(workdir, environment, "--config.prior.width=48")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "another architecture" in result.stderr

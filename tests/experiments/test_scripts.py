"""Every script from its command line, on the environment without a simulator."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from cso_jax.checkpoints import Checkpoints
from cso_jax.files import read_jsonl
from cso_jax.telemetry import load_account

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path.stem for path in (ROOT / "experiments").glob("*.py") if "EXPERIMENT = runner.Exp" in path.read_text()
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("experiments") / "fake"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def run(script, out, environment, *arguments):
    command = [sys.executable, str(ROOT / "experiments" / f"{script}.py"), *arguments, f"--out={out}"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3000)


def finished(script, out, environment):
    """The script on the fake suite, from the command line; quick where another test has run it."""
    done = run(script, out, environment, "--suite=tests/configs/fake.py", "--seeds=1", "--jobs=1")
    assert done.returncode == 0, done.stderr
    return done


def test_every_script_is_here():
    assert {"granularity", "rsft_collection"} <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_script(script, out, environment):
    done = finished(script, out, environment)
    assert "Traceback" not in done.stderr
    rows = read_jsonl(out / script / "results.jsonl")
    assert rows and all(row["episodes"] == 12 and row["seed"] == 1 for row in rows)
    if (out / script / "table.csv").exists() and script not in ("collection_cost", "rsft_collection"):
        cells = list(csv.reader((out / script / "table.csv").read_text().splitlines()))
        assert len(cells) == 1 + len({row["variant"] for row in rows})
        assert all(row[3] == "12 (1)" for row in cells[1:])
        assert (out / script / "success.png").stat().st_size > 1000


def test_main_table_of_what_the_scripts_left(out, environment):
    for script in ("components", "baselines_rl"):
        finished(script, out, environment)
    done = run("main_table", out.parent, environment, "--suite=fake", "--seeds=1")
    assert done.returncode == 0, done.stderr
    filled = [line.split("  ")[0] for line in done.stdout.splitlines()[4:13] if line.split()[-2:] != ["-", "-"]]
    assert len(filled) == 7 and not {"behaviour cloning", "its chunks through the codebook"} & set(filled)


def test_a_round_starts_where_the_one_before_ended(out, environment):
    finished("iterative", out, environment)
    (loop,) = (out / "runs").glob("rounds_*/*/seed_1")
    first, second, last = loop / "round_1", loop / "round_2", loop / "last"

    def parameters(place, stage):
        _, tree, _ = Checkpoints(place / "checkpoints" / stage).restore_latest(None)
        return jax.tree.leaves({**tree["fixed"], **tree["trainable"]})

    for before, after in zip(parameters(first, "spo"), parameters(second, "imitation"), strict=True):
        np.testing.assert_array_equal(before, after)
    for before, after in zip(parameters(second, "spo"), parameters(loop / "round_3", "imitation"), strict=True):
        np.testing.assert_array_equal(before, after)
    # The last policy is evaluated from the initial states of the two-stage run, and the base's time counts once.
    (row,) = (row for row in read_jsonl(out / "iterative" / "results.jsonl") if row["variant"] == "iterative")
    base = read_jsonl(out / "base" / "seed_1" / "episodes.jsonl")
    assert {e["init"] for e in read_jsonl(last / "episodes.jsonl")} == {e["init"] for e in base}
    parts = [load_account(place / "timing.json") for place in sorted(loop.glob("round_*"))]
    made = sum(sum(part[stage].values()) for part in parts for stage in ("rsft", "spo"))
    shared = load_account(out / "base" / "seed_1" / "timing.json")
    upstream = sum(sum(shared[stage].values()) for stage in ("demos", "codebook", "imitation"))
    assert row["seconds"] == pytest.approx(made + upstream, rel=0.05)
    assert row["iterations"] == sum(len(_spo_rows(place)) for place in loop.glob("round_*"))


def _spo_rows(place):
    return [row for row in read_jsonl(place / "metrics.jsonl") if row["stage"] == "spo"]

"""A run in two processes: the numbers of one with two devices, one set of files, and a loss that costs little."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from support import cascade
from support.cascade import CONFIG, ROOT, policy_of, sorted_episodes

from cso_jax.files import read_jsonl

STAGES = ("codebook", "imitation", "rsft", "spo")


def start(workdir, environment, count=2, **options):
    """Both processes of a run, the leader first, each with one device."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        subprocess.Popen(
            [*cascade.command(workdir), f"--processes=127.0.0.1:{port},{count},{number}"],
            cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True, **options,
        )
        for number in range(count)
    ]  # fmt: skip


def ended(processes):
    """Exit statuses, and what was said."""
    said = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], said


@pytest.fixture(scope="module")
def alone(tmp_path_factory, run_environment):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    cascade.finish(workdir, run_environment | {"JAX_NUM_CPU_DEVICES": "2"})
    return workdir


@pytest.mark.slow
def test_two_processes_compute_what_two_devices_do(tmp_path, run_environment, alone):
    workdir = tmp_path / "run"
    statuses, said = ended(start(workdir, run_environment))
    assert statuses == [0, 0], said
    for stage in STAGES:
        mine, theirs = policy_of(workdir, stage), policy_of(alone, stage)
        for name, value in mine.items():
            np.testing.assert_allclose(value, theirs[name], atol=1e-5, err_msg=f"{stage} {name}")
    assert sorted_episodes(workdir) == sorted_episodes(alone)
    steps = [row["step"] for row in read_jsonl(workdir / "metrics.jsonl") if row["stage"] == "codebook"]
    assert steps == sorted(set(steps))  # written once
    assert said[1] == "" and (workdir / ".processes" / "1" / "output.txt").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_is_killed_and_the_run_goes_on(tmp_path, run_environment, alone, victim):
    workdir = tmp_path / "run"
    processes = start(workdir, run_environment)
    cascade.wait_until(lambda: (workdir / "checkpoints" / "imitation" / "100").exists(), processes[0])
    processes[victim].kill()
    statuses, _ = ended(processes)
    assert 0 not in statuses
    statuses, said = ended(start(workdir, run_environment))
    assert statuses == [0, 0], said
    mine, theirs = policy_of(workdir, "spo"), policy_of(alone, "spo")
    for name, value in mine.items():
        np.testing.assert_allclose(value, theirs[name], atol=1e-5, err_msg=name)


def test_what_cannot_be_read_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "cso_jax.main", f"--config={CONFIG}", f"--workdir={tmp_path}", "--processes=here"],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: --processes=here: ") and "HOST:PORT" in done.stderr

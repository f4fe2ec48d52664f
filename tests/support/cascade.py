"""Whole runs on the environment without a simulator, as processes of their own, and what they leave."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from cso_jax.checkpoints import Checkpoints
from cso_jax.files import read_jsonl

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "configs" / "fake.py"


def environment(compiled: Path) -> dict[str, str]:
    """The environment of child processes that keep compiled programs in `compiled`: most of what a short run costs."""
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PLATFORMS": "cpu",
    }


def command(workdir, *changes: str, config=CONFIG) -> list[str]:
    """The command of a run; `changes` are "spo.iterations=1" and the like, or whole options."""
    options = (change if change.startswith("--") else f"--config.{change}" for change in changes)
    return [sys.executable, "-m", "cso_jax.main", f"--config={config}", f"--workdir={workdir}", *options]


def start(workdir, environment, *changes: str, config=CONFIG) -> subprocess.Popen[str]:
    """The run in a process group of its own, as a shell or a cluster starts it; its stderr is a pipe."""
    return subprocess.Popen(
        command(workdir, *changes, config=config), cwd=ROOT, env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_until(reached, process: subprocess.Popen[str], what: str = "what it is for", seconds: float = 240) -> None:
    """Until `reached()`, while the process lives."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, f"ended before {what}: {process.stderr and process.stderr.read()}"
        assert time.monotonic() < deadline, f"{what} did not come within {seconds:g} s"
        time.sleep(0.005)


def limit_s() -> float:
    """The 10 seconds within which a run promises to end; where others have the cores too, in proportion more."""
    return 10 * min(6.0, max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0))))


def kill(process: subprocess.Popen[str]) -> None:
    """As the kernel does where memory is short: the process alone, whose children have to notice."""
    process.kill()
    process.communicate()


def run(workdir, environment, *changes: str, config=CONFIG) -> subprocess.CompletedProcess[str]:
    """The run, ended in whatever way."""
    return subprocess.run(
        command(workdir, *changes, config=config),
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def finish(workdir, environment, *changes: str) -> str:
    """What a run said, which must end well."""
    done = run(workdir, environment, *changes)
    assert done.returncode == 0, done.stderr
    return done.stderr


def made_once(folder: Path, make) -> Path:
    """`folder`, filled by `make(place)` by whichever process of pytest-xdist asks first; the others wait for it."""
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            part = folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)  # of a process that failed at it
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder


def saved(workdir, stage: str):
    """(step, tree, meta) of the newest checkpoint of a stage."""
    found = Checkpoints(workdir / "checkpoints" / stage).restore_latest(None)
    assert found is not None, f"{workdir} holds no checkpoint of {stage}"
    return found


def policy_of(workdir, stage: str) -> dict[str, np.ndarray]:
    """The parameters of the policy that a stage left, by their place in it: "/prior/head/kernel"."""
    tree = saved(workdir, stage)[1]
    return flat({**tree["fixed"], **tree["trainable"]})


def flat(tree, prefix="") -> dict[str, np.ndarray]:
    """The leaves of a tree by their place in it."""
    if isinstance(tree, dict):
        return {k: v for name, part in tree.items() for k, v in flat(part, f"{prefix}/{name}").items()}
    if isinstance(tree, list | tuple):
        return {k: v for number, part in enumerate(tree) for k, v in flat(part, f"{prefix}/{number}").items()}
    return {prefix: tree}


def changed_parts(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    """The parts of a policy in which a parameter differs, out of `policy_of` two stages with the same parameters."""
    assert before.keys() == after.keys() and before
    return {name.split("/")[1] for name in before if not np.array_equal(before[name], after[name])}


def metrics_of(workdir, stage: str) -> list[dict]:
    """The rows that a stage logged."""
    return [row for row in read_jsonl(workdir / "metrics.jsonl") if row["stage"] == stage]


def results_of(workdir) -> dict:
    """What results.json holds."""
    return json.loads((workdir / "results.json").read_text())


def sorted_episodes(workdir) -> list[str]:
    """The rows of the evaluated episodes, at least one, whatever the order in which they ended."""
    rows = sorted(json.dumps(row, sort_keys=True) for row in read_jsonl(workdir / "episodes.jsonl"))
    assert rows
    return rows

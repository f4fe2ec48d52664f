"""Signals as a person or a cluster sends them: whatever comes, and whenever, the process ends soon."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time

import psutil
import pytest
from support import cascade, libero
from support.cascade import ROOT, limit_s, wait_until

QUICKSTART = ROOT / "configs" / "quickstart.py"


@pytest.fixture
def start(run_environment):
    """Start the cascade in a process group of its own, as a shell or a cluster does."""
    started = []

    def call(workdir, *changes, config=cascade.CONFIG):
        started.append(cascade.start(workdir, run_environment, *changes, config=config))
        return started[-1]

    yield call
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def end_of(process):
    """stderr of a process that must end within the limit and leave no child behind."""
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    _, stderr = process.communicate(timeout=limit_s())
    _, alive = psutil.wait_procs(children, timeout=limit_s())
    assert not alive
    assert "Traceback" not in stderr and "error:" not in stderr
    return stderr


def demonstrating(process):
    """Whether a process of it makes demonstrations: it has been at work for a moment."""
    for child in psutil.Process(process.pid).children():
        with contextlib.suppress(psutil.Error):  # it may be ending
            if "spawn_main" in " ".join(child.cmdline()) and sum(child.cpu_times()[:2]) > 0.5:
                return True
    return False


SLOW_EXPERT = ("demos.noise=0.3", "env.horizon=40", "demos.per_task=4000", "demos.max_attempts_per_demo=30")


@pytest.mark.parametrize(
    ("signals", "status"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGINT] * 3, 130),
        ([signal.SIGTERM], 143),
        ([signal.SIGUSR1, signal.SIGINT], 143),
    ],
    ids=lambda value: "-".join(s.name for s in value) if isinstance(value, list) else None,
)
def test_signals_to_the_group_end_demonstrations(start, tmp_path, signals, status):
    process = start(tmp_path / "run", *SLOW_EXPERT)
    wait_until(lambda: demonstrating(process), process)
    for number in signals:
        os.killpg(process.pid, number)
        time.sleep(0.2)
    stderr = end_of(process)
    assert process.returncode == status
    assert "memory" not in stderr and "run the same command to go on" in stderr


@pytest.mark.slow
@pytest.mark.parametrize(("number", "times", "status"), [(signal.SIGINT, 3, 130), (signal.SIGTERM, 1, 143)])
def test_signals_end_metaworld_demonstrations(start, tmp_path, number, times, status):
    process = start(tmp_path / "run", "demos.per_task=400", config=QUICKSTART)
    wait_until(lambda: demonstrating(process), process)
    for _ in range(times):
        os.killpg(process.pid, number)
        time.sleep(0.5)
    assert "memory" not in end_of(process)
    assert process.returncode == status


@pytest.mark.slow
def test_sigterm_ends_libero_demonstrations(start, tmp_path):
    libero.assets()
    config = ROOT / "configs" / "libero_object_state.py"
    process = start(tmp_path / "run", config=config)
    wait_until(lambda: demonstrating(process), process)
    time.sleep(10)  # into an attempt, which takes most of a minute
    process.send_signal(signal.SIGTERM)
    end_of(process)
    assert process.returncode == 143


STAGES = {
    "codebook": lambda w: (w / "checkpoints" / "codebook").exists(),
    "rollouts": lambda w: (w / "checkpoints" / "imitation" / "200").exists(),
    "spo": lambda w: (w / "checkpoints" / "spo").exists(),
}


@pytest.mark.parametrize(
    ("stage", "number"), [("codebook", signal.SIGHUP), ("rollouts", signal.SIGUSR1), ("spo", signal.SIGINT)]
)
def test_any_stage_saves_and_stops(start, tmp_path, stage, number):
    workdir = tmp_path / "run"
    process = start(workdir)
    wait_until(lambda: STAGES[stage](workdir), process)
    os.killpg(process.pid, number)
    stderr = end_of(process)
    assert process.returncode == (130 if number == signal.SIGINT else 143)
    assert f"{number.name}: saving, then stopping" in stderr


@pytest.mark.parametrize("delay", [0.3, 0.6, 1.0, 2.0])
def test_a_signal_while_everything_is_still_being_imported(start, tmp_path, delay):
    process = start(tmp_path / "run")
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=limit_s())
    assert process.returncode in (130, -signal.SIGINT)
    assert "error:" not in stderr


BUSY = """
import sys, threading, time
from cso_jax.stopping import stop_on_signals, end_process
stop = threading.Event()
with stop_on_signals(stop, grace_s=1.0) as received:
    print("ready", flush=True)
    if sys.argv[1] == "native":
        while True:  # a native call that does not come back to the interpreter, as a compilation
            sorted([0.0] * 100)
            threading.Lock().acquire() and threading.Event().wait(3600)
    stop.wait()
    time.sleep(float(sys.argv[1]))
end_process(received.exit_status)
"""


@pytest.mark.parametrize(
    ("busy", "signals", "status", "said"),
    [
        ("native", [signal.SIGTERM], 143, "still busy after 1 s: leaving at once"),
        ("native", [signal.SIGINT, signal.SIGINT], 130, "SIGINT: leaving at once"),
        ("600", [signal.SIGINT, signal.SIGTERM], 130, "SIGTERM: leaving at once"),
        ("600", [signal.SIGUSR1], 143, "still busy after 1 s: leaving at once"),
        ("0", [signal.SIGHUP], 143, "SIGHUP: saving, then stopping"),
    ],
)
def test_whoever_is_too_busy_is_ended(busy, signals, status, said):
    process = subprocess.Popen([sys.executable, "-c", BUSY, busy], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    for number in signals:
        process.send_signal(number)
        time.sleep(0.1)
    _, stderr = process.communicate(timeout=limit_s())
    assert process.returncode == status and said in stderr


def in_imitation(workdir):
    rows = workdir / "metrics.jsonl"
    return rows.exists() and '"imitation"' in rows.read_text()


def test_a_closed_terminal_saves_and_stops(run_environment, tmp_path):
    """What is written to a terminal that is gone raises: neither the run nor the watch over it may end by that."""
    workdir = tmp_path / "run"
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        command = cascade.command(workdir, "imitation.steps=1000000", "imitation.checkpoint_every=1000000")
        os.execve(sys.executable, command, run_environment)
    deadline = time.monotonic() + 240
    while not in_imitation(workdir):
        assert time.monotonic() < deadline
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 4096)
    os.close(terminal)
    try:
        assert psutil.Process(pid).wait(limit_s()) == 143
    except psutil.TimeoutExpired:
        os.kill(pid, signal.SIGKILL)
        raise
    assert [folder for folder in (workdir / "checkpoints" / "imitation").iterdir() if folder.name.isdigit()]


HOLDING = """
import os, sys, threading, time
from cso_jax.stopping import stop_on_signals, end_process
stop = threading.Event()
with stop_on_signals(stop, grace_s=2.0) as received:
    print("ready", flush=True)
    if sys.argv[1] == "unread":  # nobody reads stderr, whose pipe is full
        os.set_blocking(2, False)
        try:
            while True:
                os.write(2, b"." * 4096)
        except BlockingIOError:
            os.set_blocking(2, True)
    stop.wait()
    time.sleep(600 if sys.argv[1] == "unread" else 0.5)
    print("saved", flush=True)
end_process(received.exit_status)
"""


@pytest.fixture
def hold():
    started = []

    def call(how, prefix=()):
        process = subprocess.Popen([*prefix, sys.executable, "-c", HOLDING, how], cwd=ROOT, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield call
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_under_nohup_a_closed_terminal_is_nothing(hold):
    process = hold("read", ["nohup"])
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired, match=r"timed out after 1\.0 seconds"):
        process.wait(1.0)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=limit_s())[0] == "saved\n"
    assert process.returncode == 143


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_that_a_launcher_hands_on_again_counts_once(hold, number, status):
    process = hold("read")
    for _ in range(3):
        process.send_signal(number)
        time.sleep(0.01)
    stdout, stderr = process.communicate(timeout=limit_s())
    assert stdout == "saved\n" and "leaving at once" not in stderr
    assert process.returncode == status


def test_stderr_that_nobody_reads_holds_nothing_up(hold):
    process = hold("unread")
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(limit_s()) == 143

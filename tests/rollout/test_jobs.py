"""Calls in other processes: results in any order, errors as text, dead processes told apart, nothing left behind."""

import os
import signal
import time

import psutil
import pytest

from cso_jax.rollout.episodes import Interrupted
from cso_jax.rollout.jobs import JobError, JobProcesses, ProcessDied


def double(value):
    return 2 * value


def fail(message):
    raise LookupError(message)


def end(number):
    os.kill(os.getpid(), number)


def sleep(seconds):
    time.sleep(seconds)
    return os.getpid()


@pytest.fixture(autouse=True)
def nothing_left():
    before = {child.pid for child in psutil.Process().children()}
    yield
    left = [child for child in psutil.Process().children() if child.pid not in before]
    assert not [child for child in left if "resource_tracker" not in " ".join(child.cmdline())]


def test_results_come_back_whatever_the_order():
    with JobProcesses(2) as processes:
        jobs = [processes.submit(double, number) for number in range(7)]
        assert [processes.result(job) for job in reversed(jobs)] == [12, 10, 8, 6, 4, 2, 0]


def test_an_exception_is_text_and_the_process_goes_on():
    with JobProcesses(1) as processes:
        job, later = processes.submit(fail, "no\nsuch thing"), processes.submit(double, 4)
        with pytest.raises(JobError, match=r"^LookupError: no such thing\n") as raised:
            processes.result(job)
        assert raised.value.kind == "LookupError" and "in fail" in raised.value.__notes__[0]
        assert processes.result(later) == 8


@pytest.mark.parametrize(("number", "memory"), [(signal.SIGKILL, True), (signal.SIGSEGV, False)])
def test_a_process_that_dies_is_replaced(number, memory):
    with JobProcesses(1) as processes:
        job, later = processes.submit(end, number), processes.submit(double, 4)
        with pytest.raises(ProcessDied, match=f"ended with signal {number.name}") as raised:
            processes.result(job)
        assert raised.value.memory == memory
        assert processes.result(later) == 8


def test_a_signal_to_the_whole_group_is_a_stop_and_no_death():
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > 4  # this process notices a moment later

    with JobProcesses(1, stop=stop) as processes:
        job = processes.submit(end, signal.SIGTERM)
        with pytest.raises(Interrupted, match="stopped while a job was running"):
            processes.result(job)


def test_stopping_does_not_wait_for_what_runs():
    stopped = []
    with JobProcesses(1, stop=lambda: bool(stopped)) as processes:
        job = processes.submit(sleep, 600)
        stopped.append(1)
        started = time.monotonic()
        with pytest.raises(Interrupted, match="stopped while a job was running"):
            processes.result(job)
    assert time.monotonic() - started < 60


def test_a_job_taken_back_is_not_run():
    with JobProcesses(1) as processes:
        first, second, third = (processes.submit(sleep, 0.0) for _ in range(3))
        processes.cancel(second)
        processes.cancel(first)  # runs already
        assert isinstance(processes.result(third), int)
        assert not second.done

"""The worker pool against the fake environment: same records whatever the schedule, and nothing left behind."""

import contextlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from cso_jax.envs import fake
from cso_jax.envs.protocol import EvalInit, TrainInit
from cso_jax.experts.fake import expert_action
from cso_jax.rollout.episodes import Episode, EpisodeRequest, Interrupted, RolloutError
from cso_jax.rollout.jobs import JobProcesses
from cso_jax.rollout.pool import WorkerPool, _Job
from cso_jax.rollout.worker import Failure

HORIZON = 24
EXECUTE = 4
TASKS = fake.DEFAULT_TASKS


def act(observations, keys, decision_index, tasks):
    """A noisy expert whose noise depends on the episode's key and the decision alone."""
    actions, noise = [], []
    for state, key, index in zip(observations["state"], keys, decision_index, strict=True):
        rng = np.random.default_rng([*key.tolist(), int(index)])
        noise.append(rng.normal(size=2).astype(np.float32))
        actions.append(np.tile(expert_action(state) + 0.8 * noise[-1], (EXECUTE, 1)))
    assert len(tasks) == len(keys)
    return np.stack(actions).astype(np.float32), {"noise": np.stack(noise), "index": decision_index}


def requests(count=12):
    return [
        EpisodeRequest(TrainInit(TASKS[i % 3], i), np.array([7, i], np.uint32), record=i == 0, tag=i)
        for i in range(count)
    ]


def make_pool(*, workers=2, slots=3, settings=None, **options):
    options.setdefault("log", lambda line: None)
    return WorkerPool(
        fake.make_environments, {"horizon": HORIZON, **(settings or {})}, workers=workers, slots=slots, **options
    )


def same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert (a.request.tag, a.success, a.steps) == (b.request.tag, b.success, b.steps)
        np.testing.assert_array_equal(a.actions, b.actions)
        assert a.decisions.keys() == b.decisions.keys()
        for name in a.decisions:
            np.testing.assert_array_equal(a.decisions[name], b.decisions[name])
        for name in a.observations:
            np.testing.assert_array_equal(a.observations[name], b.observations[name])
        np.testing.assert_array_equal(np.array(a.frames), np.array(b.frames))


def simulate(request):
    """What one episode must be, worked out with one environment in this process."""
    environment = fake.make_environments({"horizon": HORIZON}, 1)[0]
    result = environment.reset(request.init, record=request.record)
    steps, states, actions = 0, [], []
    while not result.done:
        states.append(result.observation["state"])
        chunk, _ = act({"state": states[-1][None]}, request.key[None], np.array([len(actions)]), (request.init.task,))
        actions.append(chunk[0])
        result = environment.step_chunk(chunk[0])
        steps += result.steps
    return result.success, steps, np.stack(states), np.stack(actions)


@pytest.fixture(scope="module")
def reference():
    with make_pool(workers=1, slots=1) as pool:
        return pool.run(requests(), act, keep_observations=True)


@pytest.fixture(autouse=True)
def no_orphans():
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert [child for child in left if "resource_tracker" not in " ".join(child.cmdline())] == []


def test_records_are_those_of_a_plain_loop(reference):
    outcomes = set()
    for request, record in zip(requests(), reference, strict=True):
        success, steps, states, actions = simulate(request)
        assert (record.success, record.steps) == (success, steps)
        np.testing.assert_array_equal(record.observations["state"], states)
        np.testing.assert_array_equal(record.actions, actions)
        np.testing.assert_array_equal(record.decisions["index"], np.arange(len(actions)))
        outcomes.add(success)
    assert outcomes == {True, False}  # else the comparison says little
    assert len(reference[0].frames) == 1 + reference[0].steps // fake.FRAME_EVERY and not reference[1].frames


@pytest.mark.parametrize(("workers", "slots", "batch_size"), [(1, 5, None), (3, 2, 5), (2, 4, 3)])
def test_schedule_does_not_show_in_records(reference, workers, slots, batch_size):
    seen = []
    with make_pool(workers=workers, slots=slots, batch_size=batch_size) as pool:
        records = pool.run(
            requests(), act, keep_observations=True, on_episode=lambda i, record: seen.append((i, record.request.tag))
        )
        again = pool.run(requests(5), act, keep_observations=True)
    same(records, reference)
    same(again, reference[:5])
    assert sorted(seen) == [(i, i) for i in range(12)]
    stats = pool.stats
    assert stats.episodes == 17 and pool.restarts == 0
    assert stats.steps == sum(record.steps for record in records + again)
    assert stats.decisions == sum(len(record.actions) for record in records + again)
    assert stats.worker_rss > 0 and stats.run_s >= stats.wait_s > 0
    assert stats.rows == stats.batches * (batch_size or slots) >= stats.decisions
    assert stats.worker_s == pytest.approx(workers * stats.run_s)
    twice = stats.plus(stats)
    assert (twice.steps, twice.worker_rss) == (2 * stats.steps, stats.worker_rss)


def test_batches_are_full_size_and_padding_repeats_a_real_row():
    sizes, padded = set(), 0

    def watch(observations, keys, decision_index, tasks):
        nonlocal padded
        actions, extras = act(observations, keys, decision_index, tasks)
        sizes.add((len(keys), len(tasks), len(decision_index), len(observations["state"]), keys.dtype.name))
        unique = len(np.unique(keys, axis=0))
        padded += 8 - unique
        for row in range(unique, 8):
            np.testing.assert_array_equal(keys[row], keys[0])
            actions[row] = np.nan  # whatever comes out of a padding row must go nowhere
            extras["noise"][row] = np.nan
        return actions, extras

    with make_pool(workers=1, slots=3, batch_size=8) as pool:
        records = pool.run(requests(4), watch, keep_observations=False)
    assert sizes == {(8, 8, 8, 8, "uint32")} and padded > 0
    assert all(np.isfinite(record.decisions["noise"]).all() and record.observations is None for record in records)


def test_no_requests():
    with make_pool() as pool:
        assert pool.run([], act, keep_observations=False) == []


def test_killed_worker_changes_nothing(reference):
    lines = []
    killed = []

    def kill_one(observations, keys, decision_index, tasks):
        if not killed and decision_index.max() >= 2:
            workers = [c for c in psutil.Process().children() if "resource_tracker" not in " ".join(c.cmdline())]
            os.kill(workers[0].pid, signal.SIGKILL)
            killed.append(workers[0].pid)
        return act(observations, keys, decision_index, tasks)

    with make_pool(log=lines.append) as pool:
        records = pool.run(requests(), kill_one, keep_observations=True)
    same(records, reference)
    assert pool.restarts == 1 and any("SIGKILL" in line for line in lines)


@pytest.mark.parametrize(("kind", "step"), [("die", 0), ("raise", 6), ("hang", 6)])
def test_fault_that_strikes_once_changes_nothing(reference, tmp_path, kind, step):
    victim = requests()[4].init.name
    fault = {"kind": kind, "at_step": step, "marker": str(tmp_path / "struck")}
    lines = []
    with make_pool(settings={"faults": {victim: fault}}, step_timeout_s=1.0, log=lines.append) as pool:
        records = pool.run(requests(), act, keep_observations=True)
    same(records, reference)
    assert pool.restarts == 1 and (tmp_path / "struck").exists()
    assert victim in lines[0]


def test_environment_that_always_fails_is_named():
    victim = EvalInit("left", 3)
    faulty = EpisodeRequest(victim, np.zeros(2, np.uint32))
    with make_pool(settings={"faults": {victim.name: {"kind": "raise", "at_step": 2}}}) as pool:
        with pytest.raises(
            RolloutError, match=r"eval:left:3 failed after 3 attempt.*FakeFault: told to fail"
        ) as caught:
            pool.run([*requests(4), faulty], act, keep_observations=False)
        assert "step_chunk" in caught.value.__notes__[0]
        assert pool.restarts == 3
        assert len(pool.run(requests(4), act, keep_observations=False)) == 4  # the pool survives it


def test_process_that_always_dies_blames_the_right_episode():
    victim = requests()[1].init.name
    with (
        make_pool(workers=1, slots=4, max_attempts=2, settings={"faults": {victim: {"kind": "die"}}}) as pool,
        pytest.raises(RolloutError, match=rf"{victim} failed after 2 .*exit code 1"),
    ):
        pool.run(requests(4), act, keep_observations=False)


def test_fatal_fault_is_not_tried_again():
    victim = requests()[1].init.name
    with make_pool(workers=1, settings={"faults": {victim: {"kind": "fatal"}}}) as pool:
        with pytest.raises(RolloutError, match="told to fail for good"):
            pool.run(requests(3), act, keep_observations=False)
        assert pool.restarts == 1


def test_of_two_workers_that_are_overdue_at_once_the_second_is_not_forgotten():
    """The failure of the first one ends the run; the second must still count as busy, for the next run to deal with."""

    class Frozen:
        def __init__(self):
            self.connection, self.theirs = multiprocessing.Pipe()
            self.commands = [(0, "reset")]
            self.busy, self.starting, self.deadline = True, False, 0.0

        def overdue(self):
            self.busy = False
            return Failure("WorkerTimeout", "no answer", position=0)

        def kill(self):
            self.connection.close()

        ask_to_close = kill

        def finish(self, grace_s):
            pass

    with make_pool(slots=1, max_attempts=1) as pool:
        for worker, request in zip(pool._workers, requests(2), strict=True):
            worker.process = Frozen()
            worker.episodes[0] = Episode(worker.number, request)
            pool._watch(worker.process, worker)
        job = _Job(requests(2), act, False, None, [None, None], [], 2)
        with pytest.raises(RolloutError, match="no answer"):
            pool._find_overdue(job)
        assert [worker.process is not None and worker.process.busy for worker in pool._workers] == [False, True]


@pytest.mark.parametrize(
    ("fault", "starts", "message"),
    [
        ({"type": "ImportError", "message": "libEGL.so.1\nnot found"}, 1, "ImportError: libEGL.so.1 not found"),
        ({"type": "OSError", "message": "no display"}, 3, r"\(3 attempts\): OSError: no display"),
        ({"type": "exit", "message": ""}, 3, "exit code 3"),
    ],
)
def test_factory_error_surfaces_in_one_line(fault, starts, message):
    with make_pool(workers=1, settings={"factory_error": fault}) as pool:
        with pytest.raises(RolloutError, match=message) as caught:
            pool.run(requests(2), act, keep_observations=False)
        assert "\n" not in str(caught.value)
        assert pool.restarts == starts


@pytest.mark.parametrize(
    ("kind", "options", "remedy"),
    [
        ("raise", {}, "mend the cause and run the same command again"),
        ("die", {}, "the simulator crashed: what was finished is kept, run the same command again"),
        ("hang", {"step_timeout_s": 0.5}, "raise config.rollout.step_timeout_s"),
    ],
)
def test_failed_episodes_say_what_to_do(kind, options, remedy):
    victim = requests()[1].init.name
    with (
        make_pool(workers=1, max_attempts=1, settings={"faults": {victim: {"kind": kind}}}, **options) as pool,
        pytest.raises(RolloutError, match=f"from {victim} failed after 1 .*; .*{remedy}"),
    ):
        pool.run(requests(3), act, keep_observations=False)


def test_a_worker_that_is_killed_points_at_memory():
    def kill_workers(*arguments):
        for child in psutil.Process().children():
            if "spawn_main" in " ".join(child.cmdline()):
                child.kill()
        return act(*arguments)

    with (
        make_pool(workers=1, max_attempts=1) as pool,
        pytest.raises(RolloutError, match=r"SIGKILL.*; lower config\.rollout\.workers or config\.rollout\.slots"),
    ):
        pool.run(requests(3), kill_workers, keep_observations=False)


def test_long_messages_leave_room_for_what_to_do():
    fault = {"type": "ValueError", "message": "<body/>" * 500}
    with (
        make_pool(workers=1, settings={"factory_error": fault}) as pool,
        pytest.raises(RolloutError, match=r"could not be built.*mend the cause") as caught,
    ):
        pool.run(requests(1), act, keep_observations=False)
    assert len(str(caught.value)) < 250
    assert "<body/>" * 500 in caught.value.__notes__[0]


def test_factory_that_recovers_is_given_another_chance(tmp_path):
    fault = {"type": "OSError", "message": "busy", "marker": str(tmp_path / "once")}
    with make_pool(workers=1, settings={"factory_error": fault}) as pool:
        assert len(pool.run(requests(2), act, keep_observations=False)) == 2
        assert pool.restarts == 1


def test_stop_interrupts_and_pool_can_be_used_again(reference):
    calls = []

    def counting(*arguments):
        calls.append(1)
        return act(*arguments)

    with make_pool() as pool:
        with pytest.raises(Interrupted, match="of 12 episodes unfinished"):
            pool.run(requests(), counting, keep_observations=True, stop=lambda: len(calls) >= 3)
        assert len(calls) == 3
        records = pool.run(requests(), act, keep_observations=True, stop=lambda: False)
    same(records, reference)
    assert pool.restarts == 0


def test_exceptions_in_act_leave_the_pool_usable(reference):
    def broken(*arguments):
        raise ZeroDivisionError("policy")

    def interrupted(*arguments):
        raise KeyboardInterrupt("by hand")

    def infinite(*arguments):
        actions, extras = act(*arguments)
        return actions * np.inf, extras

    with make_pool() as pool:
        with pytest.raises(ZeroDivisionError, match="policy"):
            pool.run(requests(), broken, keep_observations=True)
        with pytest.raises(RolloutError, match=r"the policy's actions are not finite for train:\w+:\d+ at decision 0"):
            pool.run(requests(), infinite, keep_observations=True)
        with pytest.raises(KeyboardInterrupt, match="by hand"):
            pool.run(requests(), interrupted, keep_observations=True)
        same(pool.run(requests(), act, keep_observations=True), reference)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_broken_policy_does_not_act(value):
    """NaN logits draw some token, and the decoder makes finite actions of it: only the log-probability tells."""

    def broken(observations, keys, index, tasks):
        actions, extras = act(observations, keys, index, tasks)
        log_prob = np.zeros((len(keys), 8), np.float32)
        log_prob[index == 1, 3] = value
        return actions, extras | {"log_prob": log_prob}

    with (
        make_pool() as pool,
        pytest.raises(
            RolloutError, match=r"the policy's log_prob are not finite for train:\w+:\d+ at decision 1: its parameters"
        ),
    ):
        pool.run(requests(), broken, keep_observations=False)


@pytest.mark.parametrize(("step", "decision"), [(0, 0), (6, 2)])
def test_a_policy_is_not_asked_about_nan(step, decision):
    name = requests()[4].init.name
    asked = []

    def watched(observations, *arguments):
        asked.append(np.isfinite(observations["state"]).all())
        return act(observations, *arguments)

    with make_pool(settings={"faults": {name: {"kind": "nan", "at_step": step}}}) as pool:
        message = f"the observation 'state' is not finite for {name} at decision {decision}: the simulation"
        with pytest.raises(RolloutError, match=message):
            pool.run(requests(), watched, keep_observations=False)
    assert all(asked) and (asked or decision == 0)


def test_workers_are_recycled(reference):
    with make_pool(recycle_after_episodes=3) as pool:
        records = pool.run(requests(), act, keep_observations=True)
    same(records, reference)
    assert pool.restarts == 0 and pool.stats.recycled >= 1


def test_sigint_does_not_reach_workers_and_nothing_of_the_parent_changes(reference):
    environment, main = dict(os.environ), sys.modules["__main__"]
    with make_pool(workers=1) as pool:
        pool.run(requests(1), act, keep_observations=False)
        (worker,) = [c for c in psutil.Process().children() if "resource_tracker" not in " ".join(c.cmdline())]
        assert worker.environ()["OMP_NUM_THREADS"] == "1"
        assert not any("jaxlib" in mapped.path for mapped in worker.memory_maps())
        worker.send_signal(signal.SIGINT)
        same(pool.run(requests(), act, keep_observations=True), reference)
        assert pool.restarts == 0
    assert dict(os.environ) == environment and sys.modules["__main__"] is main
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_closed_pool_refuses_and_arguments_are_checked():
    pool = make_pool()
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.run(requests(1), act, keep_observations=False)
    with pytest.raises(ValueError, match="at least 1"):
        make_pool(workers=0)
    with pytest.raises(ValueError, match="uint32"):
        EpisodeRequest(TrainInit("left", 0), np.zeros(2, np.int64))


def test_workers_end_with_a_killed_parent():
    script = (
        "import numpy as np, psutil, sys\n"
        "from cso_jax.envs.protocol import TrainInit\n"
        "from cso_jax.envs import fake\n"
        "from cso_jax.rollout.pool import EpisodeRequest, WorkerPool\n"
        "pool = WorkerPool(fake.make_environments, {}, workers=2, slots=1)\n"
        "def act(observations, keys, index, tasks):\n"
        "    if index.max() > 1:\n"
        "        print(*[child.pid for child in psutil.Process().children()], flush=True)\n"
        "        psutil.Process().kill()\n"
        "    return np.zeros((1, 4, 2), np.float32), {}\n"
        "key = np.zeros(2, np.uint32)\n"
        "pool.run([EpisodeRequest(TrainInit('up', i), key) for i in range(4)], act, keep_observations=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL and not done.stderr, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) >= 2
    deadline = time.monotonic() + 30
    while any(_is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_is_alive(pid) for pid in pids)


def _is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_workers_in_the_midst_of_a_step_end_with_a_killed_parent():
    script = (
        "import numpy as np, psutil, threading\n"
        "from cso_jax.envs.protocol import TrainInit\n"
        "from cso_jax.envs import fake\n"
        "from cso_jax.rollout.pool import EpisodeRequest, WorkerPool\n"
        "init = TrainInit('left', 0)\n"
        "faults = {init.name: {'kind': 'hang', 'at_step': 6}}\n"
        "pool = WorkerPool(fake.make_environments, {'faults': faults}, workers=1, slots=1)\n"
        "def act(observations, keys, index, tasks):\n"
        "    if index.max() == 1:\n"
        "        threading.Timer(1.0, die).start()\n"
        "    return np.zeros((1, 4, 2), np.float32), {}\n"
        "def die():\n"
        "    print(*[child.pid for child in psutil.Process().children()], flush=True)\n"
        "    psutil.Process().kill()\n"
        "pool.run([EpisodeRequest(init, np.zeros(2, np.uint32))], act, keep_observations=False)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert parent.wait(60) == -signal.SIGKILL and pids
        _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=60)
        assert not alive
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.stdout.close()


@pytest.fixture
def few_files():
    """Hardly any file, and so no pipe to another process, can be opened any more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open(os.devnull, os.O_RDONLY)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + 1, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_processes_that_the_system_does_not_grant_are_one_line(few_files):
    with make_pool() as pool, pytest.raises(RolloutError, match=r"lower config\.rollout\.workers, or raise ulimit"):
        pool.run(requests(2), act, keep_observations=False)
    with JobProcesses(2) as processes, pytest.raises(RolloutError, match=r"lower config\.demos\.processes"):
        processes.submit(abs, 1)

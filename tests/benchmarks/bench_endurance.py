"""What a run stands: kills at random instants, workers killed and frozen, a clock that jumps, a disk that fills, hours.

    python tests/benchmarks/bench_endurance.py kills [--count=20] [--seed=0]
    python tests/benchmarks/bench_endurance.py workers [--kills=100] [--freezes=5] [--env=fake|metaworld]
    python tests/benchmarks/bench_endurance.py clock
    python tests/benchmarks/bench_endurance.py disk          (as root: it mounts a small memory file system)
    python tests/benchmarks/bench_endurance.py memory --config=configs/quickstart.py [--minutes=120] [...]

The first four compare the end with that of an undisturbed run, bit for bit: parameters of every stage, results,
evaluated episodes, and end with status 1 where anything differs. `memory` says what the learner and its workers hold
as SPO goes on; it takes further options of a run. When what strikes differs between calls: look at a failure even if it
does not return.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from bench_pool import make_act, settings_of  # noqa: E402  beside this file
from support import cascade  # noqa: E402  needs the folder above

from cso_jax import envs  # noqa: E402
from cso_jax.envs.protocol import TrainInit  # noqa: E402
from cso_jax.rollout.episodes import EpisodeRequest  # noqa: E402
from cso_jax.rollout.pool import WorkerPool  # noqa: E402

STAGES = ("codebook", "imitation", "rsft", "spo")
DISKS_MB = (1, 2, 3, 4, 6, 8, 12, 16, 24, 64)
SAMPLE_S = 10.0
JUMPING_CLOCK = '''
import random, time
_now, _random = time.time, random.Random(1)
def _jumping():
    """Up to a day ahead or back, other at every call."""
    return _now() + _random.uniform(-86400, 86400)
time.time = _jumping
time.time_ns = lambda: int(_jumping() * 1e9)
'''


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def differences(one: Path, other: Path) -> list[str]:
    """In what two finished runs differ."""
    found = []
    for stage in STAGES:
        left, right = (cascade.flat(cascade.saved(place, stage)[1]) for place in (one, other))
        if left.keys() != right.keys() or any(not np.array_equal(left[name], right[name]) for name in left):
            found.append(f"parameters of {stage}")
    if cascade.results_of(one) != cascade.results_of(other):
        found.append("results.json")
    if cascade.sorted_episodes(one) != cascade.sorted_episodes(other):
        found.append("episodes.jsonl")
    return found


def undisturbed(folder: Path) -> tuple[dict[str, str], Path, float]:
    """The environment of the runs, one that nothing disturbs, and its seconds with its programs compiled before."""
    environment = cascade.environment(folder / "compiled")
    cascade.finish(folder / "warm", environment)
    started = time.monotonic()
    cascade.finish(folder / "reference", environment)
    return environment, folder / "reference", time.monotonic() - started


def report(what: str, found: list[str]) -> int:
    say(f"{what}: {'DIFFERS in ' + ', '.join(found) if found else 'equal to the undisturbed run, bit for bit'}")
    return len(found)


def kills(options: argparse.Namespace, folder: Path) -> int:
    """SIGKILL at uniformly random moments of a run that is started again and again."""
    environment, reference, seconds = undisturbed(folder)
    draw = random.Random(options.seed)
    killed = runs = wrong = 0
    while killed < options.count:
        workdir = folder / f"run_{runs}"
        moments = []
        while True:
            process = cascade.start(workdir, environment)
            moment = draw.uniform(0, 0.6 * seconds) if killed < options.count else None
            try:
                process.communicate(timeout=moment)
                break
            except subprocess.TimeoutExpired:
                cascade.kill(process)
                killed += 1
                moments.append(moment)
        if process.returncode:
            say(f"run {runs} ended with status {process.returncode}")
            wrong += 1
        runs += 1
        times = ", ".join(f"{moment:.1f}" for moment in moments)
        what = f"run {runs} killed {len(moments)} times ({times} s after its starts)"
        wrong += report(what, differences(reference, workdir))
        shutil.rmtree(workdir)
    say(f"{killed} kills in {runs} runs of {seconds:.0f} s, {wrong} differences")
    return wrong


def workers(options: argparse.Namespace, folder: Path) -> int:
    """SIGKILL and SIGSTOP to worker processes while a pool runs episodes."""
    settings = settings_of(options.env, 80, 0)
    factory = envs.factory(settings)
    act = make_act(envs.spec(settings).action_dim, 0.0)
    tasks = settings["tasks"]
    requests = [
        EpisodeRequest(TrainInit(tasks[number % len(tasks)], number), np.array([number, 0], np.uint32))
        for number in range(options.episodes)
    ]

    def pool(**changes):
        return WorkerPool(factory, settings, workers=2, slots=8, max_attempts=10**6, log=lambda line: None, **changes)

    with pool() as calm:
        expected = calm.run(requests, act, keep_observations=True)
    draw = random.Random(options.seed)
    events = ["kill"] * options.kills + ["freeze"] * options.freezes
    draw.shuffle(events)
    over = threading.Event()
    done: list[str] = []

    def disturb() -> None:
        for event in events:
            if over.wait(draw.uniform(0.2, 3.0)):
                return
            while not (living := living_workers()):
                if over.wait(0.05):
                    return
            number = signal.SIGKILL if event == "kill" else signal.SIGSTOP
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(living).pid or 0, number)
                done.append(event)

    rounds = wrong = 0
    thread = threading.Thread(target=disturb, daemon=True)
    with pool(step_timeout_s=options.frozen_s) as disturbed:
        thread.start()
        while thread.is_alive():
            records = disturbed.run(requests, act, keep_observations=True)
            rounds += 1
            wrong += sum(not same(one, other) for one, other in zip(expected, records, strict=True))
        over.set()
        replaced = disturbed.restarts
    say(
        f"{done.count('kill')} kills and {done.count('freeze')} freezes in {rounds} rounds of {len(requests)} episodes "
        f"({options.env}), {replaced} workers replaced: {wrong} of {rounds * len(requests)} records differ"
    )
    return wrong


def living_workers() -> list[multiprocessing.process.BaseProcess]:
    return [one for one in multiprocessing.active_children() if one.name.startswith("rollout-worker")]


def same(one, other) -> bool:
    """Whether two episodes' records hold the same bits."""
    return (
        (one.success, one.steps) == (other.success, other.steps)
        and np.array_equal(one.actions, other.actions)
        and one.observations.keys() == other.observations.keys()
        and all(np.array_equal(one.observations[name], other.observations[name]) for name in one.observations)
    )


def clock(options: argparse.Namespace, folder: Path) -> int:
    """A run whose wall clock is up to a day ahead or back, another time at every look."""
    environment, reference, _ = undisturbed(folder)
    (folder / "sitecustomize.py").write_text(JUMPING_CLOCK)
    path = os.pathsep.join(filter(None, (str(folder), environment.get("PYTHONPATH"))))
    cascade.finish(folder / "jumping", environment | {"PYTHONPATH": path})
    return report("a clock that jumps", differences(reference, folder / "jumping"))


def disk(options: argparse.Namespace, folder: Path) -> int:
    """A run on a file system that is full again and again, and is given more space each time."""
    environment, reference, _ = undisturbed(folder)
    place = folder / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISKS_MB[0]}m", "tmpfs", place], check=True)
    wrong = 0
    try:
        for size in DISKS_MB:
            subprocess.run(["mount", "-o", f"remount,size={size}m", place], check=True)
            done = cascade.run(place / "run", environment)
            last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
            say(f"{size} MB: status {done.returncode}: {last}")
            if done.returncode == 0:
                break
            wrong += not last.startswith("error:") or "Traceback" in done.stderr
        return wrong + report("a disk that filled", differences(reference, place / "run"))
    finally:
        subprocess.run(["umount", place], check=True)


def held(pid: int) -> tuple[float, int]:
    """Resident memory in MB and open file handles of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir(f"/proc/{pid}/fd"))


def children(pid: int) -> list[int]:
    """The processes that `pid` started and that live."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def memory(options: argparse.Namespace, folder: Path) -> int:
    """What a learner and its workers hold in the course of a long SPO stage."""
    arguments = [f"--config={options.config}", f"--workdir={options.workdir or folder / 'run'}", *options.changes]
    process = subprocess.Popen(
        [sys.executable, "-m", "cso_jax.main", "--config.spo.iterations=100000", *arguments], cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    samples: list[tuple[float, float, int, float, int]] = []  # s, learner MB and handles, the largest worker's
    started = time.monotonic()
    try:
        while process.poll() is None and time.monotonic() - started < 60 * options.minutes:
            time.sleep(SAMPLE_S)
            with contextlib.suppress(OSError):
                of_workers = [held(child) for child in children(process.pid)]
                most = max((one for one, _ in of_workers), default=0.0), max((n for _, n in of_workers), default=0)
                samples.append((time.monotonic() - started, *held(process.pid), *most))
    finally:
        process.terminate()
        status = process.wait()
    rows = np.array(samples)
    say(f"status {status}; {len(rows)} samples in {rows[-1, 0] / 60:.0f} minutes")
    say("minute  learner MB  handles  largest worker MB  handles")
    for row in rows[np.linspace(0, len(rows) - 1, 13).astype(int)]:
        say(f"{row[0] / 60:6.0f}  {row[1]:10.0f}  {row[2]:7.0f}  {row[3]:17.0f}  {row[4]:7.0f}")
    later = rows[len(rows) // 2 :]
    for name, column in (("learner", 1), ("largest worker", 3)):
        slope = np.polyfit(later[:, 0] / 3600, later[:, column], 1)[0]
        say(f"second half: {name} {slope:+.1f} MB per hour")
    return int(status not in (0, 143))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("kills", "workers", "clock", "disk", "memory"))
    parser.add_argument("--count", type=int, default=20, help="kills of whole runs")
    parser.add_argument("--kills", type=int, default=100, help="of workers")
    parser.add_argument("--freezes", type=int, default=5, help="of workers, which then do not answer")
    parser.add_argument("--frozen_s", type=float, default=5.0, help="after how long a worker counts as hanging")
    parser.add_argument("--env", choices=("fake", "metaworld"), default="fake")
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--workdir", default=None, help="a run to go on with (default: a new one)")
    parser.add_argument("--minutes", type=float, default=120.0)
    options, options.changes = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        part = {"kills": kills, "workers": workers, "clock": clock, "disk": disk, "memory": memory}[options.part]
        return int(part(options, Path(folder)) > 0)


if __name__ == "__main__":
    sys.exit(main())

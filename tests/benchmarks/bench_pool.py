"""Decisions and simulator steps per second of the worker pool, with a dummy policy of a chosen cost.

    python tests/benchmarks/bench_pool.py [--env=fake|metaworld] [--workers=2] [--slots=8] [--act_ms=0]
        [--image_size=0] [--step_ms=0] [--episodes=200] [--horizon=80]

Prints one line: rates, how full the batches were, and where the main thread's time went.
"""

import argparse
import sys
import time

import numpy as np

from cso_jax import envs
from cso_jax.envs.protocol import TrainInit
from cso_jax.rollout.episodes import EpisodeRequest
from cso_jax.rollout.pool import WorkerPool

METAWORLD_TASKS = ("reach-v3", "push-v3", "door-open-v3")
EXECUTION_HORIZON = 8


def settings_of(name: str, horizon: int, image_size: int) -> dict:
    """What `config.env` would hold."""
    tasks = METAWORLD_TASKS if name == "metaworld" else ("left", "right", "up")
    observations = {"obs": "pixels" if image_size else "state", "image_size": image_size or 32}
    cameras = {
        "cameras": ("corner2",),
        "render": {"shadows": False, "reflections": False, "msaa": 0},
        "instance_cap": 96,
        "video_size": 160,
        "video_every": 4,
    }
    return {"name": name, "tasks": tasks, "horizon": horizon, **observations, **cameras}


def make_act(action_dim: int, act_s: float):
    """A policy that sleeps `act_s` per batch and moves at random, as a function of key and decision."""

    def act(observations, keys, decision_index, tasks):
        time.sleep(act_s)
        seeds = keys[:, 0].astype(np.uint64) + 1000 * decision_index.astype(np.uint64)
        actions = [np.random.default_rng(seed).uniform(-1, 1, (EXECUTION_HORIZON, action_dim)) for seed in seeds]
        return np.stack(actions).astype(np.float32), {}

    return act


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=("fake", "metaworld"), default="fake")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=None)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--horizon", type=int, default=80)
    parser.add_argument("--act_ms", type=float, default=0.0, help="what one policy call costs")
    parser.add_argument("--step_ms", type=float, default=0.0, help="what one step of the fake simulator costs")
    parser.add_argument("--image_size", type=int, default=0, help="0: no images")
    args = parser.parse_args()
    settings = settings_of(args.env, args.horizon, args.image_size)
    if args.env == "fake":
        settings["step_s"] = args.step_ms / 1000
    tasks = envs.task_names(settings)
    act = make_act(envs.spec(settings).action_dim, args.act_ms / 1000)
    requests = [
        EpisodeRequest(TrainInit(tasks[i % len(tasks)], i), np.array([i, 0], np.uint32)) for i in range(args.episodes)
    ]
    with WorkerPool(
        envs.make_environments, settings, workers=args.workers, slots=args.slots, batch_size=args.batch_size
    ) as pool:
        pool.run(requests[: args.workers * args.slots], act, keep_observations=False)  # start, build, warm up
        before = pool.stats.as_dict()
        pool.run(requests, act, keep_observations=True)
        spent = {name: value - before[name] for name, value in pool.stats.as_dict().items()}
        rss = pool.stats.worker_rss
    run_s = spent["run_s"]
    sys.stdout.write(
        f"{args.env}, {args.workers} workers x {args.slots} slots, act {args.act_ms:g} ms, image {args.image_size}: "
        f"{spent['decisions'] / run_s:.0f} decisions/s, {spent['steps'] / run_s:.0f} steps/s, "
        f"rows per batch {spent['decisions'] / spent['batches']:.1f} of {pool.batch_size}, "
        f"act {spent['act_s'] / run_s:.0%}, wait {spent['wait_s'] / run_s:.0%}, "
        f"simulators {(spent['physics_s'] + spent['render_s']) / run_s / args.workers:.0%} busy, "
        f"worker RSS {rss / 2**20:.0f} MiB\n"
    )


if __name__ == "__main__":
    main()

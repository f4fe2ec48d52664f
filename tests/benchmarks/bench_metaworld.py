"""Steps per second of MetaWorld's own step and of ours, the cost of a reset, and of a camera image per setting.

    python tests/benchmarks/bench_metaworld.py [--tasks=reach-v3,push-v3,...|MT50] [--steps=300] [--images=20]

Both simulators execute the same actions of the scripted expert, one after the other, in this one process.
"""

import argparse
import sys
import time
import warnings
from typing import Any

import numpy as np

from cso_jax.envs.gl import SceneRenderer, configure_gl
from cso_jax.envs.metaworld.simulator import Simulator, task_sets

TASKS = (
    "reach-v3", "push-v3", "pick-place-v3", "door-open-v3", "button-press-v3", "peg-insert-side-v3", "stick-pull-v3",
    "shelf-place-v3", "coffee-push-v3", "sweep-into-v3",
)  # fmt: skip
RENDER_SETTINGS = (
    {"shadows": True, "reflections": True, "msaa": 4},
    {"shadows": False, "reflections": True, "msaa": 4},
    {"shadows": False, "reflections": True, "msaa": 0},
    {"shadows": False, "reflections": False, "msaa": 0},
)
IMAGE_SIZES = (84, 128, 224)
RESETS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS), help="task names, or a set of tasks such as MT50")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--images", type=int, default=20, help="images per setting and size, 0 for none")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    tasks = task_sets().get(args.tasks) or tuple(args.tasks.split(","))
    say(f"{'task':32s}{'steps/s':>10s}{'ours':>10s}{'reset ms':>12s}{'ours':>8s}{'build ms':>10s}")
    rows = [measure_task(task, args.steps) for task in tasks]
    means = np.mean(rows, axis=0)
    say(f"{'mean of the times':32s}{1 / means[0]:10.0f}{1 / means[1]:10.0f}{1e3 * means[2]:12.1f}{1e3 * means[3]:8.1f}")
    if args.images:
        measure_images(args.images)


def measure_task(task: str, steps: int) -> list[float]:
    """Seconds per step of MetaWorld and ours, per reset of MetaWorld and ours, and to build ours."""
    stock, actions = stock_environment(task), []
    start = time.perf_counter()
    ours = Simulator(task)
    build = time.perf_counter() - start

    start = time.perf_counter()
    for seed in range(RESETS):
        stock.seed(seed)
        state, _ = stock.reset()
    stock_reset = (time.perf_counter() - start) / RESETS
    policy = expert(task)
    stock_step = 0.0
    for _ in range(steps):
        action = np.clip(policy.get_action(state), -1, 1).astype(np.float32)
        start = time.perf_counter()
        state = stock.step(action)[0]
        stock_step += (time.perf_counter() - start) / steps
        actions.append(action)

    start = time.perf_counter()
    for seed in range(RESETS):
        ours.reset(seed)
    our_reset = (time.perf_counter() - start) / RESETS
    start = time.perf_counter()
    for action in actions:
        ours.step(action)
    our_step = (time.perf_counter() - start) / steps
    say(
        f"{task:32s}{1 / stock_step:10.0f}{1 / our_step:10.0f}"
        f"{1e3 * stock_reset:12.1f}{1e3 * our_reset:8.1f}{1e3 * build:10.0f}"
    )
    return [stock_step, our_step, stock_reset, our_reset, build]


def measure_images(count: int) -> None:
    say(
        f"\nms per image of corner2 with {configure_gl('pixels')}{'build':>16s}"
        + "".join(f"{n:8d}" for n in IMAGE_SIZES)
    )
    simulator = Simulator("push-v3")
    simulator.reset(0)
    for flags in RENDER_SETTINGS:
        start = time.perf_counter()
        drawer = SceneRenderer(simulator.model, max(IMAGE_SIZES), **flags)
        line = f"{', '.join(f'{name} {value}' for name, value in flags.items()):44s}"
        line += f"{1e3 * (time.perf_counter() - start):8.0f}"
        for size in IMAGE_SIZES:
            drawer.render(simulator.model, simulator.data, "corner2", size)
            start = time.perf_counter()
            for _ in range(count):
                drawer.render(simulator.model, simulator.data, "corner2", size)
            line += f"{1e3 * (time.perf_counter() - start) / count:8.1f}"
        drawer.close()
        say(line)


def stock_environment(task: str) -> Any:
    """MetaWorld's own environment with a visible goal."""
    from metaworld.env_dict import ENV_CLS_MAP

    env: Any = ENV_CLS_MAP[task]()
    env._partially_observable = False
    env.__dict__.pop("sawyer_observation_space", None)
    env._set_task_called = True
    env.seeded_rand_vec = True
    env._freeze_rand_vec = False
    return env


def expert(task: str) -> Any:
    from metaworld.policies import ENV_POLICY_MAP

    policies: Any = ENV_POLICY_MAP
    return policies[task]()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""Measure the tabletop's scripted experts and its simulator, and draw its picture, for docs/tabletop.md:

    python tools/tabletop_page.py [--robot=viperx] [--episodes=50] [--picture=FILE.png]

Prints two tables in Markdown: per task n, successes with a 95 % Wilson interval and steps, with the noise of the
default config, from fresh train placements; and the control steps per second of processor time of one process. The
picture has a column per task: first and last image of a demonstration from the front, and between them one in its
middle from the wrist.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cso_jax import telemetry
from cso_jax.envs.protocol import TrainInit
from cso_jax.envs.tabletop.benchmark import default_config
from cso_jax.envs.tabletop.robots import ROBOTS
from cso_jax.envs.tabletop.simulator import Simulator
from cso_jax.envs.tabletop.tasks import TASKS
from cso_jax.experts.protocol import Demonstration
from cso_jax.experts.tabletop.expert import collect_demo
from cso_jax.statistics import wilson

_FIRST = 100_000  # placements that no run comes to
_PIXELS, _COLOURS = 200, 64
_FRAME = ((2, 2), (2, 2), (0, 0))
_ROUNDS = 4


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--robot", default="viperx", choices=ROBOTS)
    parser.add_argument("--picture", default="", help="where to draw it, such as docs/images/tabletop.png")
    options = parser.parse_args(arguments)
    config = default_config()
    settings, noise = {**config["env"], "robot": options.robot}, config["demos"]["noise"]
    telemetry.show("| task | n | successes | 95 % interval | mean steps | longest |\n|---|---|---|---|---|---|")
    speeds = []
    for task in TASKS:
        demos = [
            collect_demo({**settings, "obs": "state"}, TrainInit(task, _FIRST + episode), noise=noise, extra_steps=0,
                         seed=0)
            for episode in range(options.episodes)
        ]  # fmt: skip
        telemetry.show(expert_line(task, demos))
        solved = next(demo for demo in demos if demo is not None)
        speeds.append(f"| {task} | {steps_per_second(solved, settings):,.0f} |")
    telemetry.show("\n".join(["", "| task | control steps per second |", "|---|---|", *speeds]))
    if options.picture:
        draw(Path(options.picture), settings)
    return 0


def expert_line(task: str, demos: list[Demonstration | None]) -> str:
    """A row of the table of experts."""
    steps = [demo.success_step + 1 for demo in demos if demo is not None]
    low, high = wilson(len(steps), len(demos))
    times = f"{np.mean(steps):.0f} | {max(steps)}" if steps else "- | -"
    return f"| {task} | {len(demos)} | {len(steps)} | {low:.2f} to {high:.2f} | {times} |"


def steps_per_second(demo: Demonstration, settings: Mapping[str, Any]) -> float:
    """Control steps per second of processor time, executing a demonstration's actions several times."""
    simulator = Simulator(demo.init.task, settings["robot"], settings["control_hz"])
    start = time.process_time()
    for _ in range(_ROUNDS):
        simulator.reset(demo.init)
        for action in demo.actions:
            simulator.step(action)
    return _ROUNDS * len(demo.actions) / (time.process_time() - start)


def draw(file: Path, settings: Mapping[str, Any]) -> None:
    """Write the picture of demonstrations under `settings`, in few colours to keep it small."""
    from PIL import Image

    columns = []
    for task in TASKS:
        demo = collect_demo({**settings, "obs": "pixels", "image_size": _PIXELS}, TrainInit(task, 3), noise=0.0,
                            extra_steps=10, seed=0)  # fmt: skip
        if demo is None:
            raise RuntimeError(f"the expert failed at {task}: draw another placement")
        front, wrist = demo.observations["front"], demo.observations["wrist"]
        framed = [np.pad(image, _FRAME, constant_values=255) for image in (front[0], wrist[len(wrist) // 2], front[-1])]
        columns.append(np.concatenate(framed))
    picture = Image.fromarray(np.concatenate(columns, axis=1))
    file.parent.mkdir(parents=True, exist_ok=True)
    # By coverage of the colour space: by frequency all colours would be the table's.
    picture.quantize(_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(file, optimize=True)


if __name__ == "__main__":
    sys.exit(main())

"""Milliseconds per simulator step: LIBERO's own off-screen environment, and ours with images when the policy looks.

    python tests/benchmarks/bench_libero.py [--rounds=5] [--horizon=8] [--decimate=600] [--assets=FOLDER]

LIBERO's environment draws both cameras at 128 pixels after every step, as its evaluation uses it. Ours draws them once
per `horizon` steps, which is when a policy that executes chunks looks. Each round runs every variant on every task, so
that a busy machine slows all of them alike; a figure is the mean over rounds, with the fastest round in brackets. "raw
physics" is 25 times mj_step from each of the states that the steps start from, without controller, success or images;
"no images" is a step of ours from state, "fast physics" the same from a train initial state with
config.env.libero.physics=fast. Only the decimated variant needs the library meshoptimizer; without it, it is
left out.
"""

import argparse
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from cso_jax.envs.gl import configure_gl, load_mujoco
from cso_jax.envs.libero import assets as libero_assets
from cso_jax.envs.libero import benchmark as libero
from cso_jax.envs.libero import files as libero_files
from cso_jax.envs.libero.control import SUBSTEPS
from cso_jax.envs.protocol import EvalInit, TrainInit

TASKS = (("libero_spatial", 0), ("libero_object", 0), ("libero_10", 0), ("libero_90", 30))
STOCK_STEPS = 8
CHUNKS = 3
FAST = "fast physics"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--horizon", type=int, default=8, help="steps between two looks")
    parser.add_argument("--decimate", type=int, default=600, help="triangles per mesh of the decimated variant")
    parser.add_argument("--assets", default="", help="LIBERO's assets; empty: where cso_jax looks for them")
    args = parser.parse_args()
    folder = str(libero_assets.assets_folder(args.assets))
    backend = configure_gl("pixels")
    variants: dict[str, dict[str, Any]] = {"official": {}, "fast": {"render": "fast"}}
    if importlib.util.find_spec("meshoptimizer") is not None:
        variants[f"fast, {args.decimate} triangles"] = {"render": "fast", "decimate": args.decimate}
    say(f"{backend}, {args.rounds} rounds; steps timed per round: stock {STOCK_STEPS}, ours {CHUNKS * args.horizon}")
    names = ["stock", "raw physics", FAST, "no images", *variants]
    say(f"{'ms per step':20s}" + "".join(f"{name:>24s}" for name in names))
    for suite, index in TASKS:
        task = libero_files.task_sets()[suite][index]
        times = measure(task, folder, variants, args.horizon, args.rounds)
        line = "".join(f"{times[name].mean():13.1f} ({times[name].min():7.1f})" for name in names)
        say(f"{suite + ' ' + str(index):20s}{line}")
        stock, raw = times["stock"].mean(), times["raw physics"].mean()
        say(f"{'':20s}" + "".join(f"{f'1/{stock / times[name].mean():.1f} of stock':>24s}" for name in names))
        say(f"{'':20s}" + "".join(f"{f'{times[name].mean() / raw:.2f} raw':>24s}" for name in names))


def measure(
    task: str, folder: str, variants: dict[str, dict[str, Any]], horizon: int, rounds: int
) -> dict[str, np.ndarray]:
    """Milliseconds per step `[rounds]` of every variant of one task."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    stock = context.Process(target=stock_worker, args=(there, task, folder), daemon=True)
    stock.start()
    base = {"obs": "pixels", "image_size": 128, "video_size": 128}
    slots = {name: make_slot({**base, "libero": {"assets": folder, **options}}) for name, options in variants.items()}
    slots[FAST] = make_slot({**base, "obs": "state", "libero": {"assets": folder, "physics": "fast"}})
    slots["no images"] = make_slot({**base, "obs": "state", "libero": {"assets": folder}})
    times: dict[str, list[float]] = {name: [] for name in ("stock", "raw physics", *slots)}
    assert here.recv() == "ready"
    for turn in range(-1, rounds):  # the first turn compiles and uploads
        moves = np.random.default_rng(turn + 1).uniform(-1, 1, (CHUNKS * horizon, 7)).astype(np.float32)
        here.send(moves[:STOCK_STEPS])
        found = {"stock": here.recv()}
        for name, slot in slots.items():
            slot.reset(TrainInit(task, 0) if name == FAST else EvalInit(task, 0))
            start = time.perf_counter()
            for chunk in moves.reshape(CHUNKS, horizon, 7):
                slot.step_chunk(chunk)
            found[name] = (time.perf_counter() - start) / len(moves)
        found["raw physics"] = raw_physics(task, folder, moves)
        for name, seconds in found.items():
            times[name] += [1e3 * seconds] if turn >= 0 else []
    here.send(None)
    stock.join()
    for slot in slots.values():
        slot.close()
    return {name: np.array(values) for name, values in times.items()}


def raw_physics(task: str, folder: str, moves: np.ndarray) -> float:
    """Seconds per action of 25 steps of MuJoCo, from each state of an episode of ours."""
    (slot,) = libero.make_environments({"obs": "state", "libero": {"assets": folder}}, 1)
    slot.reset(EvalInit(task, 0))
    mujoco, scene, seconds = load_mujoco(), slot.simulation.scene(), 0.0
    for action in moves:
        before = scene.snapshot()
        start = time.perf_counter()
        for _ in range(SUBSTEPS):
            mujoco.mj_step(scene.model, scene.data)
        seconds += time.perf_counter() - start
        scene.restore(before)
        scene.step(action)
    slot.close()
    return seconds / len(moves)


def make_slot(settings: dict[str, Any]) -> Any:
    return libero.make_environments(settings, 1)[0]


def stock_worker(connection: Connection, task: str, folder: str) -> None:
    """Runs LIBERO's own environment: answers actions `[N, 7]` with the seconds per step, until it gets None."""
    root = libero_files.package_folder()
    with tempfile.TemporaryDirectory() as config:
        places = {"benchmark_root": "", "bddl_files": "bddl_files", "init_states": "init_files", "datasets": ""}
        with open(f"{config}/config.yaml", "w") as file:
            file.writelines(f"{name}: '{root / place}'\n" for name, place in {**places, "assets": "assets"}.items())
        os.environ["LIBERO_CONFIG_PATH"] = config
        import libero.libero

        libero.libero.__dict__["_assets_path_cache"] = folder
        from libero.libero.envs import OffScreenRenderEnv
    env = OffScreenRenderEnv(
        bddl_file_name=str(libero_files.bddl_file(task)), camera_heights=128, camera_widths=128, hard_reset=False
    )
    env.env.reset()
    connection.send("ready")
    while (moves := connection.recv()) is not None:
        env.env.reset()
        env.set_init_state(libero_files.benchmark_states(task)[0])
        start = time.perf_counter()
        for action in moves:
            env.step(action)
        connection.send((time.perf_counter() - start) / len(moves))
    sys.stdout.flush()
    os._exit(0)  # robosuite's OpenGL contexts complain when the interpreter takes itself apart


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""What tests of LIBERO share: its assets, one task of each kind, robosuite's own environment to compare with."""

import hashlib
import importlib.util
from pathlib import Path

import h5py
import numpy as np
import pytest

from cso_jax.envs.libero import assets as libero_assets
from cso_jax.envs.libero import files as libero_files

BOWL = "pick_up_the_black_bowl_between_the_plate_and_the_ramekin_and_place_it_on_the_plate"
MILK = "pick_up_the_milk_and_place_it_in_the_basket"
STOVE = "KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it"
DRAWER = "KITCHEN_SCENE5_put_the_black_bowl_in_the_top_drawer_of_the_cabinet"
KNOB = "KITCHEN_SCENE3_turn_on_the_stove"


def assets() -> Path:
    """The folder of LIBERO's assets, as a user's run finds it, or the one beside the repository.

    Skips the test where LIBERO or its assets are not there.
    """
    for package in ("libero", "robosuite", "bddl"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    beside = Path(__file__).parents[3] / "shared" / "libero" / "assets"
    try:
        return libero_assets.assets_folder()
    except FileNotFoundError as error:
        if beside.is_dir():
            return beside
        pytest.skip(str(error))


def settings(**options) -> dict:
    """State observations, and `options` for `config.env.libero`."""
    return {"name": "libero", "obs": "state", "libero": {"assets": str(assets()), **options}}


def stock_environment(task: str):
    """robosuite's own environment of a task, without cameras, compiled anew at every reset."""
    from cso_jax.envs.libero.package import problem_classes

    classes = problem_classes(assets())
    from libero.libero.envs.bddl_utils import get_problem_info
    from robosuite.controllers import load_controller_config

    path = str(libero_files.bddl_file(task))
    return classes[get_problem_info(path)["problem_name"]](
        path,
        robots=["Panda"],
        controller_configs=load_controller_config(default_controller="OSC_POSE"),
        initialization_noise=None,
        use_camera_obs=False,
        has_renderer=False,
        has_offscreen_renderer=False,
        ignore_done=True,
    )


def actions(kind: str, count: int, seed: int = 0) -> np.ndarray:
    """Actions `[count, 7]`: "random", "press" (down onto the table, closing) or "smooth" (long moves, gripping)."""
    generator = np.random.default_rng(seed)
    if kind == "random":
        return generator.uniform(-1, 1, (count, 7))
    if kind == "press":
        made = generator.normal(0, 0.1, (count, 7))
        made[:, 2] -= 0.6
        made[:, 6] = np.where(np.arange(count) > count // 2, 1.0, -1.0)
        return made
    made = np.repeat(generator.uniform(-1, 1, (count // 10 + 1, 7)), 10, axis=0)[:count]
    made[:, 6] = np.where(np.arange(count) // 15 % 2, 1.0, -1.0)
    return made


def write_demonstrations(folder, task, states, model=None):
    """The demonstration file of a task: simulator states `[T, n]` of each, with a model's XML if given."""
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{task}_demo.hdf5", "w") as file:
        for index, rows in enumerate(states):
            demo = file.create_group(f"data/demo_{index}")
            demo["states"] = rows
            if model is not None:
                demo.attrs["model_file"] = model


def whole(scene) -> np.ndarray:
    """Everything that decides what happens next."""
    snapshot = scene.snapshot()
    command = snapshot.command
    parts = [snapshot.state, snapshot.body_pos, snapshot.body_quat, command.goal_rotation, command.fingers]
    return np.concatenate([np.ravel(part) for part in [*parts, [command.fresh]]])


def run(scene, moves: np.ndarray) -> np.ndarray:
    """As `whole`, after the actions `moves [n, 7]`."""
    for action in moves:
        scene.step(action)
    return whole(scene)


def fingerprint(scene) -> str:
    """A hash of all bits that a scene's physics holds along a few steps from two kinds of initial state."""
    parts = []
    for reset in (lambda: scene.reset_placement(3), lambda: scene.reset_benchmark(5, 105)):
        reset()
        parts += [whole(scene), run(scene, actions("press", 20))]
    return hashlib.sha256(np.concatenate(parts).tobytes()).hexdigest()

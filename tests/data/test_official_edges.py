"""Demonstration files of other writers: text, numbers, damage, locks, and conventions of actions."""

import errno
import json
import subprocess
import sys
import types

import h5py
import numpy as np
import pytest
from support.official import SPEC, TASK, changed, instruction, needs_libero, write_official

from cso_jax.data import __main__ as command
from cso_jax.data import store
from cso_jax.data.dataset import StoredImages
from cso_jax.data.libero import inventory, official
from cso_jax.run import RunError
from cso_jax.stages import demos


def as_bytes(file):
    """All text attributes of fixed length, as h5py and MATLAB may write them."""
    for group in (file["data"], *file["data"].values()):
        for name, value in group.attrs.items():
            if isinstance(value, str):
                group.attrs.create(name, np.bytes_(value[:50_000]))


def as_arrays(file):
    for name, value in file["data"].attrs.items():
        if isinstance(value, str):
            file["data"].attrs.create(name, np.array([np.bytes_(value)]))


@pytest.mark.parametrize("change", [as_bytes, as_arrays])
def test_text_of_fixed_length_is_text(tmp_path, change):
    path = changed(write_official(tmp_path / "f.hdf5"), change)
    assert official.problems(path, TASK, SPEC) == []
    with h5py.File(path) as file:
        assert official.instruction_of(official.json_attribute(file["data"], "problem_info")) == instruction(TASK)


@needs_libero
def test_another_task_is_noticed_in_text_of_fixed_length(tmp_path):
    other = TASK.replace("milk", "ketchup")
    path = changed(write_official(tmp_path / "f.hdf5", task=other), as_bytes)
    for name in ("env_args", "problem_info"):  # bddl_file_name alone says it
        changed(path, lambda f, name=name: f["data"].attrs.pop(name))
    assert f"another task: {other}" in official.problems(path, TASK, SPEC)[0]


def test_leading_zeros_in_numbers_do_not_matter(tmp_path):
    path = write_official(tmp_path / "f.hdf5", lengths=(5, 3))
    changed(path, lambda f: [f["data"].move(f"demo_{n}", f"demo_0{n}") for n in range(2)])
    episodes = official.read(path, TASK, SPEC, images=True)
    assert [episode.init for episode in episodes] == [f"train:{TASK}:0", f"train:{TASK}:1"]
    assert len(StoredImages([episode.column("agentview_rgb") for episode in episodes])[np.arange(8)]) == 8


@pytest.mark.parametrize("said", [None, ["put ", "it ", None], 7, {"a": 1}])
def test_an_instruction_that_is_no_text_is_none(tmp_path, said):
    text = json.dumps({"language_instruction": said})
    path = changed(write_official(tmp_path / "f.hdf5"), lambda f: f["data"].attrs.modify("problem_info", text))
    for name in ("env_args", "bddl_file_name"):  # else the instruction is not asked
        changed(path, lambda f, name=name: f["data"].attrs.pop(name))
    assert official.problems(path, TASK, SPEC) == []
    assert inventory.look(path).problems == ()


def test_a_group_among_the_observations_is_no_trouble(tmp_path):
    path = changed(write_official(tmp_path / "f.hdf5"), lambda f: f["data/demo_0/obs"].create_group("cameras"))
    assert inventory.look(path).problems == ()
    assert official.problems(path, TASK, SPEC) == []


@pytest.mark.parametrize("column", ["agentview_rgb", "joint_states"])
def test_damaged_blocks_are_found_before_anything_is_trained(tmp_path, column):
    path = write_official(tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:
        values = file[f"data/demo_1/obs/{column}"][()]
        replace_compressed(file, f"data/demo_1/obs/{column}", values)
        block = file[f"data/demo_1/obs/{column}"].id.get_chunk_info(1)
    with open(path, "r+b") as file:
        file.seek(block.byte_offset)
        file.write(b"\xff" * block.size)
    message = rf"obs/{column} cannot be read .* damaged, copy it again \(in demo_1\)"
    with pytest.raises(store.StoreError, match=message):
        official.check(path, TASK, SPEC)
    assert any("damaged" in problem for problem in inventory.look(path).problems)


def test_an_image_that_turns_out_damaged_is_named(tmp_path):
    path = write_official(tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:
        values = file["data/demo_0/obs/agentview_rgb"][()]
        replace_compressed(file, "data/demo_0/obs/agentview_rgb", values)
        block = file["data/demo_0/obs/agentview_rgb"].id.get_chunk_info(4)
    with open(path, "r+b") as file:
        file.seek(block.byte_offset)
        file.write(b"\xff" * block.size)
    images = StoredImages(
        [episode.column("agentview_rgb") for episode in official.read(path, TASK, SPEC, images=False)]
    )
    assert len(images[np.array([0, 3, 5])]) == 3
    with pytest.raises(store.StoreError, match=r"f.hdf5: image 4 of data/demo_0/obs/agentview_rgb cannot be read"):
        images[np.array([1, 4])]


def replace_compressed(file, name, values):
    del file[name]
    file.create_dataset(name, data=values, chunks=(1, *values.shape[1:]), compression="gzip", shuffle=True)


def test_compression_that_is_not_installed_is_named(tmp_path):
    path = write_official(tmp_path / "f.hdf5")
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/obs/agentview_rgb"]
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_chunk((1, 8, 8, 3))
        layout.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (0,))  # blosc
        space = h5py.h5s.create_simple((5, 8, 8, 3))
        h5py.h5d.create(file["data/demo_0/obs"].id, b"agentview_rgb", h5py.h5t.NATIVE_UINT8, space, layout)
    with pytest.raises(store.StoreError, match=r"agentview_rgb is compressed with .*HDF5 filter 32001.*h5repack"):
        official.check(path, TASK, SPEC)


def test_a_file_that_is_being_written_is_locked_and_not_damaged(tmp_path):
    path = write_official(tmp_path / "f.hdf5")
    own = tmp_path / "own.hdf5"
    store.write(own, [store.StoredEpisode("train:t:0", {}, {"actions": np.zeros((2, 2))})], {})
    code = (
        "import h5py, sys\n"
        "files = [h5py.File(name, 'r+') for name in sys.argv[1:]]\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(own)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert writer.stdout.readline() == b"open\n"
        with pytest.raises(store.StoreError, match=r"f.hdf5: locked by another process.*wait for it"):
            official.read(path, TASK, SPEC, images=False)
        assert "locked by another process" in inventory.look(path).problems[0]
        with pytest.raises(store.StoreBusy, match=r"own.hdf5: locked by another process"):
            store.read(own)
        with pytest.raises(store.StoreError, match="locked by another process"):
            StoredImages([(path, "data/demo_0/obs/agentview_rgb")])
    finally:
        writer.communicate()


@pytest.mark.parametrize(
    ("error", "busy", "message"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), True, "f: permission denied; make the file readable"),
        (OSError("Unable to open file (unable to open file: name = 'f', errno = 13, error message = 'Permission"), True,
         "permission denied"),
        (OSError(errno.EMFILE, "Too many open files"), True, "f: cannot be read now"),
        (OSError("Unable to open file (truncated file: eof = 96)"), False, "not a complete HDF5 file"),
    ],
)  # fmt: skip
def test_what_an_error_of_opening_means(error, busy, message):
    found = store.opening_error("f", error)
    assert isinstance(found, store.StoreBusy) == busy and message in str(found)


def test_actions_outside_the_convention_are_noted():
    good = np.array([[0.5, -1.0], [0.1, 1.0], [0.0, 0.0]])
    assert official.action_notes([good]) == []
    assert official.action_notes([good * (1 + 1e-8)]) == []  # rounding of whoever wrote it
    assert official.action_notes([np.ones((3, 2))]) == []  # held shut throughout
    (note,) = official.action_notes([good, np.array([[-1.5, -1.0]])])
    assert note.startswith("1 of 4 actions are outside [-1, 1], up to 1.5")
    (note,) = official.action_notes([np.array([[0.5, 0.0], [0.5, 1.0]])])
    assert "never negative" in note and "gripper_01" in note and "gripper_10" in note


def test_actions_are_brought_into_the_convention():
    actions = np.array([[1.5, 0.0], [-0.5, 1.0]], np.float32)
    np.testing.assert_array_equal(official.conform(actions, "clip"), [[1.0, 0.0], [-0.5, 1.0]])
    np.testing.assert_array_equal(official.conform(actions, "gripper_01"), [[1.0, -1.0], [-0.5, 1.0]])
    np.testing.assert_array_equal(official.conform(actions, "gripper_10"), [[1.0, 1.0], [-0.5, -1.0]])
    np.testing.assert_array_equal(official.conform(actions, "refuse"), actions)


def write_zero_one(folder):
    path = write_official(folder / f"{TASK}_demo.hdf5")
    for number in range(2):
        changed(path, lambda f, n=number: f[f"data/demo_{n}/actions"].__setitem__(
            (slice(None), -1), np.arange(len(f[f"data/demo_{n}/actions"])) % 2))  # fmt: skip
    return path


def test_info_notes_a_gripper_that_never_opens(tmp_path, capsys):
    path = write_zero_one(tmp_path)
    assert command.main(["info", str(tmp_path)]) == 0
    assert f"note: {path}: the gripper's action is never negative" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rule", "gripper", "said"),
    [("clip", {0.0, 1.0}, True), ("gripper_01", {-1.0, 1.0}, False), ("gripper_10", {-1.0, 1.0}, False)],
)
def test_a_run_says_so_once_and_learns_from_what_was_asked_for(tmp_path, capsys, rule, gripper, said):
    write_zero_one(tmp_path)
    run = a_run(tmp_path, rule)
    demos._check_official(run)
    assert ("never negative" in capsys.readouterr().err) == said
    ((first, second),) = demos.load(run, images=False)
    assert set(demos.actions_of(run, first)[:, -1].tolist()) == gripper
    assert demos.actions_of(run, second)[0, -1] == {"clip": 0, "gripper_01": -1, "gripper_10": 1}[rule]


def test_a_run_may_refuse_such_actions(tmp_path):
    write_zero_one(tmp_path)
    with pytest.raises(RunError, match=rf"actions=refuse: {TASK}_demo.hdf5: the gripper's action is never negative"):
        demos._check_official(a_run(tmp_path, "refuse"))


def a_run(folder, rule):
    settings = types.SimpleNamespace(actions=rule, per_task=2, folder=str(folder), label="executed")
    config = types.SimpleNamespace(data="official", demos=settings)
    return types.SimpleNamespace(config=config, tasks=(TASK,), spec=SPEC)

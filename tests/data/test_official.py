"""Official demonstrations: finding, checking and reading them, the inventory, and the download."""

import json
import types

import h5py
import numpy as np
import pytest
from support.official import SPEC, TASK, changed, instruction, libero_missing, needs_libero, replace, write_official

from cso_jax.data import __main__ as command
from cso_jax.data import store
from cso_jax.data.dataset import StoredImages
from cso_jax.data.libero import hub, inventory, official
from cso_jax.envs.protocol import EnvSpec


@pytest.mark.parametrize(
    "place",
    [
        f"libero_object/{TASK}_demo.hdf5",
        f"{TASK}_demo.hdf5",
        f"{TASK}.hdf5",
        f"anything/{TASK}.hdf5",
    ],
)
def test_a_task_is_found_in_every_usual_place(tmp_path, place):
    write_official(tmp_path / place)
    write_official(tmp_path / "libero_object/another_demo.hdf5")
    assert official.find(tmp_path, TASK) == tmp_path / place


def test_a_missing_task_is_told_with_the_nearest_file(tmp_path):
    write_official(tmp_path / f"libero_object/{TASK.replace('milk', 'silk')}_demo.hdf5")
    with pytest.raises(store.StoreError, match=rf"looked for {TASK}_demo.hdf5 and {TASK}.hdf5 in .*nearest is .*silk"):
        official.find(tmp_path, TASK)
    with pytest.raises(store.StoreError, match=r"config\.demos\.folder"):
        official.find(tmp_path / "nowhere", TASK)
    with pytest.raises(store.StoreError, match=r"config\.demos\.folder"):
        official.find("", TASK)


def test_two_files_of_a_task_are_not_chosen_between(tmp_path):
    for folder in "ab":
        write_official(tmp_path / folder / f"{TASK}_demo.hdf5")
    with pytest.raises(store.StoreError, match="more than one file"):
        official.find(tmp_path, TASK)
    assert official.find(tmp_path / "a", TASK).parent.name == "a"


def test_read_gives_what_the_policy_needs(tmp_path):
    path = write_official(tmp_path / "f.hdf5", lengths=(5, 3, 4), numbers=(10, 2, 0))
    episodes = official.read(path, TASK, SPEC, images=True)
    assert [len(episode) for episode in episodes] == [4, 3, 5]
    assert [episode.init for episode in episodes] == [f"train:{TASK}:{number}" for number in (0, 2, 10)]
    for episode in episodes:
        assert episode.observations.keys() == {"joint_states", "gripper_states", "agentview_rgb"}
        assert episode.observations["joint_states"].dtype == np.float32
        assert episode.arrays["actions"].dtype == np.float32
    with h5py.File(path) as file:
        np.testing.assert_allclose(episodes[1].arrays["actions"], file["data/demo_2/actions"][()], rtol=1e-6)
    without = official.read(path, TASK, SPEC, images=False)
    assert "agentview_rgb" not in without[0].observations
    # The images that stay on disk are those of the same demonstrations, although their numbers have gaps.
    stored = StoredImages([episode.column("agentview_rgb") for episode in without])
    every = np.concatenate([episode.observations["agentview_rgb"] for episode in episodes])
    np.testing.assert_array_equal(stored[np.arange(len(stored))], every)


@pytest.mark.parametrize(
    "options",
    [{}, {"chunks": (1, 8, 8, 3), "compression": "lzf"}, {"compression": "gzip"}, {"chunks": (4, 8, 8, 3)}],
    ids=["contiguous", "one image", "automatic", "blocks"],
)
def test_images_of_any_layout_are_read_by_row(tmp_path, options):
    paths = [write_official(tmp_path / f"{n}.hdf5", lengths=(7, 6), options=options) for n in range(5)]
    episodes = [episode for path in paths for episode in official.read(path, TASK, SPEC, images=True)]
    columns = [episode.column("agentview_rgb") for episode in episodes]
    every = np.concatenate([episode.observations["agentview_rgb"] for episode in episodes])
    rows = np.random.default_rng(1).permutation(len(every))
    # More files than may be open at a time.
    for open_files in (200, 2):
        np.testing.assert_array_equal(StoredImages(columns, open_files=open_files)[rows], every[rows])


def test_images_that_disappeared_are_named(tmp_path):
    path = write_official(tmp_path / "f.hdf5")
    with pytest.raises(store.StoreError, match=r"cannot read data/demo_9/obs/agentview_rgb of .*f.hdf5"):
        StoredImages([(path, "data/demo_9/obs/agentview_rgb")])


PROBLEMS = {
    "no such key": (lambda f: f["data/demo_1/obs"].pop("joint_states"),
                    r"no obs/joint_states; there is agentview_rgb, .*gripper_states.* \(in demo_1\)"),
    "image size": (lambda f: [replace(f, f"data/demo_{n}/obs/agentview_rgb", np.zeros((rows, 4, 4, 3), np.uint8))
                              for n, rows in enumerate((5, 3))],
                   r"holds images of 4 x 4, 8 x 8 are expected: set --config.env.image_size=4.*in every dem"),
    "image type": (lambda f: replace(f, "data/demo_0/obs/agentview_rgb", np.zeros((5, 8, 8, 3), np.float32)),
                   "float32 images, uint8 is expected"),
    "action size": (lambda f: replace(f, "data/demo_0/actions", np.zeros((5, 4))),
                    r"actions has the shape \[4\] per step, \[7\] is expected"),
    "rows": (lambda f: replace(f, "data/demo_0/obs/joint_states", np.zeros((4, 7))), "another number of rows than act"),
    "not finite": (lambda f: f["data/demo_0/actions"].write_direct(np.full((5, 7), np.nan)), "actions holds numbers"),
    "no actions": (lambda f: f["data/demo_0"].pop("actions"), "no actions; there is dones, obs"),
    "no demonstrations": (lambda f: [f["data"].pop("demo_0"), f["data"].pop("demo_1")], "no demonstrations: no group"),
    "another layout": (lambda f: f.pop("data"), "not the layout of LIBERO and robomimic"),
    "turned over": (lambda f: f["data"].attrs.modify("macros_image_convention", "opencv"), "turn them over"),
    "turned over, bytes": (lambda f: f["data"].attrs.create("macros_image_convention", np.bytes_("opencv")),
                           "convention 'opencv'"),
    "channels first": (lambda f: [replace(f, f"data/demo_{n}/obs/agentview_rgb", np.zeros((rows, 3, 8, 8), np.uint8))
                                  for n, rows in enumerate((5, 3))],
                       r"channels first \[3, 8, 8\].*numpy.transpose\(images, \(0, 2, 3, 1\)\)"),
    "a number twice": (lambda f: f["data"].copy("demo_1", "demo_00"), "two demonstrations of the number 0"),
    "a group for a key": (lambda f: [f["data/demo_0/obs"].pop("joint_states"),
                                     f["data/demo_0/obs"].create_group("joint_states")], "no obs/joint_states"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROBLEMS)
def test_each_problem_is_one_clear_line(tmp_path, name):
    change, message = PROBLEMS[name]
    path = changed(write_official(tmp_path / "f.hdf5"), change)
    found = official.problems(path, TASK, SPEC)
    assert len(found) == 1 and found[0].startswith(f"{path}: ")
    with pytest.raises(store.StoreError, match=message):
        official.check(path, TASK, SPEC)
    with pytest.raises(store.StoreError, match=message):
        official.read(path, TASK, SPEC, images=False)


def test_several_problems_are_told_at_once(tmp_path):
    path = write_official(tmp_path / "f.hdf5", lengths=(3,) * 9)
    wide = EnvSpec({"joint_states": 7, "state": 20}, {"agentview_rgb": (16, 16, 3)}, 7)
    found = official.problems(path, TASK, wide)
    assert len(found) == 2 and all("every demonstration" in problem for problem in found)
    changed(path, lambda f: [f[f"data/demo_{n}/obs"].pop("joint_states") for n in range(5)])
    assert any("demo_0, demo_1, demo_2 and 2 more" in problem for problem in official.problems(path, TASK, wide))


def test_truncated_and_missing_files(tmp_path):
    path = write_official(tmp_path / "f.hdf5")
    content = path.read_bytes()
    for size in (len(content) // 2, 100, 0):
        path.write_bytes(content[:size])
        with pytest.raises(store.StoreError, match=r"not a complete HDF5 file .* download or copy it again"):
            official.check(path, TASK, SPEC)
    with pytest.raises(store.StoreError, match="no demonstration file"):
        official.check(tmp_path / "g.hdf5", TASK, SPEC)


@needs_libero
def test_a_file_of_another_task_is_refused(tmp_path):
    other = "pick_up_the_butter_and_place_it_in_the_basket"
    path = write_official(tmp_path / f"{TASK}_demo.hdf5", task=other)
    with pytest.raises(store.StoreError, match=f"another task: {other}, not {TASK}"):
        official.check(path, TASK, SPEC)
    # The description was renamed after the recording, and the sentence tells the tasks apart.
    said = instruction(other)
    path = write_official(tmp_path / f"{TASK}_demo.hdf5", task="pick_the_butter_and_place_it_in_the_basket", said=said)
    with pytest.raises(store.StoreError, match=f"another task: {other}"):
        official.check(path, TASK, SPEC)


@needs_libero
def test_renamed_descriptions_are_the_same_task(tmp_path):
    # As the published files have it: an old name of the description, a sentence of either wording, text or pieces.
    for said in (instruction(TASK), "Pick the milk and place it in the basket", list(f'"{instruction(TASK)}"'), ""):
        path = write_official(tmp_path / "f.hdf5", task="pick_the_milk_and_place_it_in_the_basket", said=said)
        assert official.problems(path, TASK, SPEC) == []
    # Two tasks with one sentence.
    stove = "KITCHEN_SCENE8_turn_off_the_stove"
    path = write_official(tmp_path / "f.hdf5", task="unknown_name", said="turn off the stove")
    assert official.problems(path, stove, SPEC) == []


def test_attributes_that_are_no_json_are_no_obstacle(tmp_path):
    path = write_official(tmp_path / "f.hdf5", attributes={"env_args": "{", "problem_info": "[]", "bddl_file_name": ""})
    assert official.problems(path, TASK, SPEC) == []


def own_file(path, task=TASK):
    rng = np.random.default_rng(0)
    episodes = [
        store.StoredEpisode(
            f"train:{task}:{number * 3}",
            {"joint_states": rng.normal(size=(6, 7)).astype(np.float32),
             "gripper_states": rng.normal(size=(6, 2)).astype(np.float32),
             "agentview_rgb": rng.integers(0, 255, (6, 8, 8, 3), np.uint8)},
            {"actions": rng.uniform(-1, 1, (6, 7)).astype(np.float32), "expert_actions": np.zeros((6, 7)),
             "rewards": np.zeros(6, np.float32), "dones": np.zeros(6, np.uint8), "states": rng.normal(size=(6, 92))},
            {"init_state": rng.normal(size=92), "model_file": "<mujoco/>", "success_step": 4, "fixtures": {"a": [1]}},
        )
        for number in range(3)
    ]  # fmt: skip
    attributes = {
        "env_args": {"type": 1, "env_name": "libero", "task": task, "env_kwargs": {}},
        "problem_info": {"language_instruction": instruction(task)},
        "bddl_file_name": f"libero_object/{task}.bddl",
    }
    store.write(path, episodes, attributes)
    return episodes


def test_files_of_the_collector_are_official_ones(tmp_path):
    path = tmp_path / f"{TASK}.hdf5"
    written = own_file(path)
    episodes = official.read(path, TASK, SPEC, images=True)
    for before, after in zip(written, episodes, strict=True):
        np.testing.assert_array_equal(before.arrays["actions"], after.arrays["actions"])
        np.testing.assert_array_equal(before.arrays["expert_actions"], after.arrays["expert_actions"])
        np.testing.assert_array_equal(before.observations["agentview_rgb"], after.observations["agentview_rgb"])
    with pytest.raises(store.StoreError, match=f"another task: {TASK}, not another"):
        official.check(path, "another", SPEC)


def test_episode_attributes_survive(tmp_path):
    path = tmp_path / "f.hdf5"
    written = own_file(path)
    read, attributes = store.read(path)
    assert attributes["num_demos"] == 3 and attributes["total"] == 18
    assert read[1].attributes.keys() == written[1].attributes.keys()
    assert read[1].attributes["success_step"] == 4 and read[1].attributes["fixtures"] == {"a": [1]}
    np.testing.assert_array_equal(read[1].attributes["init_state"], written[1].attributes["init_state"])
    assert read[1].column("agentview_rgb") == (path, "data/demo_1/obs/agentview_rgb")
    with pytest.raises(store.StoreError, match="was not read from a file"):
        written[1].column("agentview_rgb")


def test_robomimic_finds_the_keys_it_reads(tmp_path):
    """Those that get_dataset_info, SequenceDataset and get_shape_metadata_from_dataset look up."""
    path = tmp_path / "f.hdf5"
    own_file(path)
    # It opens files with these arguments.
    with h5py.File(path, "r", swmr=True, libver="latest") as file:
        assert json.loads(file["data"].attrs["env_args"]).keys() >= {"type", "env_name", "env_kwargs"}
        assert "".join(json.loads(file["data"].attrs["problem_info"])["language_instruction"]) == instruction(TASK)
        assert sorted(file["data"], key=lambda name: int(name[5:])) == ["demo_0", "demo_1", "demo_2"]
        for demo in file["data"].values():
            assert demo["actions"].shape == (demo.attrs["num_samples"], 7)
            assert demo["obs/agentview_rgb"].shape == (6, 8, 8, 3)


def test_info_is_a_table_that_no_bad_file_stops(tmp_path, capsys):
    write_official(tmp_path / "libero_object" / f"{TASK}_demo.hdf5", lengths=(5, 3, 10))
    assert command.main(["info", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert TASK in text and "3/6/10" in text and "agentview_rgb 8x8" in text and "joint_states [7]" in text
    assert "1 files, 3 demonstrations, 18 steps" in text

    (tmp_path / "libero_object" / "broken_demo.hdf5").write_bytes(b"nothing")
    write_official(tmp_path / "libero_object" / "blocks_demo.hdf5", options={"compression": "gzip"})
    gaps = write_official(tmp_path / "libero_object" / "nan_demo.hdf5")
    changed(gaps, lambda f: f["data/demo_0/actions"].write_direct(np.full((5, 7), np.nan)))
    assert command.main(["info", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert TASK in text and "broken_demo.hdf5: not a complete HDF5 file" in text and "not finite (in demo_0)" in text
    assert "note: " in text and "lies in blocks of" in text


def test_info_knows_the_suite(tmp_path):
    path = write_official(tmp_path / "somewhere" / f"{TASK}_demo.hdf5")
    seen = inventory.look(path)
    assert seen.suite == ("somewhere" if libero_missing() else "libero_object")
    assert seen.spec.action_dim == 7 and -1 <= seen.low < seen.high <= 1


def test_command_line_errors_are_one_line(tmp_path, capsys):
    for arguments, message in (
        (["info"], "info needs a folder"),
        (["info", str(tmp_path)], "no HDF5 files in"),
        (["infos", "x"], "no command 'infos'"),
        (["info", "x", "--yes"], "info has no option --yes"),
        (["download", "libero_goal"], "download needs a suite and a folder"),
        (["language", "x"], "language needs tasks"),
        (["language", "x", "y.npz", "--model"], "--model needs a value"),
    ):
        assert command.main(arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}") and error.count("\n") == 1


class FakeHub(types.ModuleType):
    """Two suites of two tiny files each; `broken` makes the next download fail half-way."""

    def __init__(self):
        super().__init__("huggingface_hub")
        self.files = {f"{suite}/{n}_demo.hdf5": 10 + n for suite in ("libero_10", "libero_90") for n in range(2)}
        self.broken = self.short = False
        self.fetched = []
        self.HfApi = lambda: types.SimpleNamespace(list_repo_tree=self.list_repo_tree)

    def list_repo_tree(self, repository, folder, *, recursive, revision, repo_type):
        assert repository == "yifengzhu-hf/LIBERO-datasets" and repo_type == "dataset" and recursive
        if revision != "main":
            raise ValueError("no such revision\nand a long story")
        entries = [types.SimpleNamespace(path=name, size=size) for name, size in self.files.items()]
        return [entry for entry in [*entries, types.SimpleNamespace(path=f"{folder}/README.md", size=1)]
                if entry.path.startswith(f"{folder}/")]  # fmt: skip

    def hf_hub_download(self, repository, name, *, repo_type, revision, local_dir):
        from pathlib import Path

        if self.broken:
            raise ConnectionError("no route to host")
        self.fetched.append(name)
        path = Path(local_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (self.files[name] - self.short))


@pytest.fixture
def fake_hub(monkeypatch):
    made = FakeHub()
    monkeypatch.setattr(hub, "_hub", lambda: made)
    return made


def test_download_says_the_size_and_goes_on_where_it_stopped(tmp_path, capsys, fake_hub):
    place = tmp_path / "data"
    assert command.main(["download", "libero_100", str(place)]) == 1  # nobody to ask
    captured = capsys.readouterr()
    assert "4 files, 0.00 GB" in captured.out and "give --yes" in captured.err and not fake_hub.fetched
    fake_hub.broken = True
    assert command.main(["download", "libero_long", str(place), "--yes"]) == 1
    assert "no route to host; the same command goes on" in capsys.readouterr().err
    fake_hub.broken = False
    assert command.main(["download", "libero_long", str(place), "--yes"]) == 0
    assert fake_hub.fetched == ["libero_10/0_demo.hdf5", "libero_10/1_demo.hdf5"]
    assert command.main(["download", "libero_100", str(place), "--yes"]) == 0
    assert fake_hub.fetched[2:] == ["libero_90/0_demo.hdf5", "libero_90/1_demo.hdf5"]
    assert command.main(["download", "libero_100", str(place)]) == 0  # nothing left to ask for
    assert len(fake_hub.fetched) == 4


def test_download_errors(tmp_path, capsys, fake_hub, monkeypatch):
    assert command.main(["download", "libero_1000", str(tmp_path), "--yes"]) == 1
    assert "there are libero_spatial, libero_object" in capsys.readouterr().err
    assert command.main(["download", "libero_10", str(tmp_path), "--yes", "--revision=v9"]) == 1
    assert "ValueError: no such revision" in capsys.readouterr().err
    fake_hub.short = True
    assert command.main(["download", "libero_10", str(tmp_path), "--yes"]) == 1
    assert "has not the 10 bytes" in capsys.readouterr().err
    fake_hub.files["libero_10/0_demo.hdf5"] = 10**18
    assert command.main(["download", "libero_10", str(tmp_path), "--yes"]) == 1
    assert "GB free" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    assert command.main(["download", "libero_10", str(tmp_path), "--yes"]) == 1
    assert "pip install huggingface_hub" in capsys.readouterr().err

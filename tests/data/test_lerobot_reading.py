"""LeRobot data sets of other programs: read, turned into our files, and refused in one line where they are damaged."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from support.lerobot import FPS, arrow, edit_info, edit_table, parquet, pictures, write_foreign, write_stores
from support.official import needs_libero

from cso_jax import envs
from cso_jax.data import __main__ as command
from cso_jax.data import store
from cso_jax.data.lerobot import episodes, reading, stores
from cso_jax.data.lerobot.layout import LeRobotError
from cso_jax.data.libero import official
from cso_jax.envs.protocol import EnvSpec

av = pytest.importorskip("av", reason="videos need av: pip install av")

CAMERA = "observation.images.image"
FAKE = stores.Choices(env="fake")


def _sentences():
    settings = {"name": "fake"}
    return [envs.sentence(settings, task) for task in ("left", "up")]


def _png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": "frame.png"}


def _camera(shape=(8, 8, 3), names=("height", "width", "channel")):
    facts = {"dtype": "image", "shape": list(shape), "names": list(names)}
    return {CAMERA: (facts, lambda length: [_png(image) for image in pictures(length, 8, length)])}


def test_every_task_becomes_a_file(tmp_path):
    source = write_foreign(tmp_path / "set", _sentences(), more=_camera())
    assert stores.to_store(source, tmp_path / "out", FAKE) == {"left.hdf5": 2, "up.hdf5": 1}
    found, facts = store.read(tmp_path / "out/left.hdf5")
    assert [episode.init for episode in found] == ["train:left:0", "train:left:1"]
    assert [episode.attributes["lerobot_episode"] for episode in found] == [0, 2]
    assert [len(episode) for episode in found] == [5, 4]
    assert facts["problem_info"]["language_instruction"] == _sentences()[0]
    rows = list(reading.DataSet(source).episodes())
    for episode, row in zip(found, (rows[0], rows[2]), strict=True):
        np.testing.assert_array_equal(episode.observations["state"], row.columns["observation.state"])
        np.testing.assert_array_equal(episode.observations["image"], pictures(len(episode), 8, len(episode)))
        np.testing.assert_array_equal(episode.arrays["actions"], row.columns["action"])
        assert episode.arrays["rewards"].tolist() == [0.0] * (len(episode) - 1) + [1.0]


def test_cameras_are_renamed_turned_and_read_channels_first(tmp_path):
    source = write_foreign(tmp_path / "set", _sentences(), more=_camera((3, 8, 8), ("channels", "height", "width")))
    choices = stores.Choices("rotate180", "ee8", {"image": "top"}, "fake")
    stores.to_store(source, tmp_path / "out", choices)
    episode = store.read(tmp_path / "out/up.hdf5")[0][0]
    np.testing.assert_array_equal(episode.observations["top"], pictures(3, 8, 3)[:, ::-1, ::-1])
    assert {name: values.shape[1:] for name, values in episode.observations.items() if name != "top"} == {
        "ee_pos": (3,), "ee_ori": (3,), "gripper_states": (2,)
    }  # fmt: skip


def test_a_state_of_another_size_is_not_guessed_at(tmp_path):
    source = write_foreign(tmp_path / "set", _sentences(), state=9)
    with pytest.raises(LeRobotError, match=r"has 9 numbers, --proprio=ee8 means 8 .*--proprio=joints9 or as_is"):
        stores.to_store(source, tmp_path / "out", stores.Choices(proprio="ee8", env="fake"))


def test_success_comes_from_the_set_where_it_says(tmp_path):
    facts = {"dtype": "bool", "shape": [1], "names": None}
    more = {
        "next.success": (facts, lambda length: [step == 1 for step in range(length)] if length > 3 else [False] * 3)
    }
    source = write_foreign(tmp_path / "set", _sentences(), more=more)
    stores.to_store(source, tmp_path / "out", FAKE)
    assert store.read(tmp_path / "out/left.hdf5")[0][0].arrays["rewards"].tolist() == [0, 1, 0, 0, 0]
    assert store.read(tmp_path / "out/up.hdf5")[0][0].arrays["rewards"].tolist() == [0, 0, 0]


@needs_libero
def test_a_run_finds_and_reads_libero_tasks(tmp_path):
    tasks = envs.task_names({"name": "libero", "tasks": ("libero_spatial",)})[:2]
    sentences = [envs.sentence({"name": "libero"}, task).capitalize() + "." for task in tasks]
    write_foreign(tmp_path / "set", sentences, more=_camera())
    arguments = ["convert", str(tmp_path / "set"), str(tmp_path / "out"), "--proprio=ee8", "--tasks=libero_spatial"]
    assert command.main(arguments) == 0
    spec = EnvSpec({"ee_pos": 3, "ee_ori": 3, "gripper_states": 2}, {"agentview_rgb": (8, 8, 3)}, 7)
    found = official.read(official.find(tmp_path / "out", tasks[0]), tasks[0], spec, images=True)
    assert [len(episode) for episode in found] == [5, 4]


@needs_libero
def test_a_sentence_of_several_tasks_needs_to_be_told_which(tmp_path):
    sentence = "turn on the stove"
    source = write_foreign(tmp_path / "set", [sentence])
    with pytest.raises(LeRobotError, match=rf"tasks ask for '{sentence}' \(.*--tasks=SUITES,TASKS"):
        stores.to_store(source, tmp_path / "out", stores.Choices())
    assert stores.to_store(source, tmp_path / "out", stores.Choices(tasks=("libero_goal",)))


def test_an_unknown_sentence_is_told_with_the_nearest(tmp_path):
    known = _sentences()[0]
    source = write_foreign(tmp_path / "set", [known + "ward"])
    with pytest.raises(LeRobotError, match=rf"no task of fake asks for '{known}ward'; the nearest: '{known.lower()}'"):
        stores.to_store(source, tmp_path / "out", FAKE)
    with pytest.raises(LeRobotError, match="--env=moon is no benchmark; there are metaworld"):
        stores.to_store(source, tmp_path / "out", stores.Choices(env="moon"))
    assert not (tmp_path / "out").exists()


def _version(folder):
    edit_info(folder, lambda info: info.update(codebase_version="v2.1"))


def _not_json(folder):
    (folder / "meta/info.json").write_text("{")


def _unknown_type(folder):
    edit_info(folder, lambda info: info["features"]["action"].update(dtype="float8"))


def _other_shape(folder):
    edit_info(folder, lambda info: info["features"]["action"].update(shape=[6]))


def _depth(folder):
    edit_info(folder, lambda info: info["features"][CAMERA].update(shape=[8, 8, 1]))


def _no_rate(folder):
    edit_info(folder, lambda info: info.update(fps=0))


def _other_rate(folder):
    edit_info(folder, lambda info: info.update(fps=2 * FPS))


def _odd_path(folder):
    edit_info(folder, lambda info: info.update(data_path="data/{episode_chunk}.parquet"))


def _truncated(folder):
    path = folder / "data/chunk-000/file-001.parquet"
    path.write_bytes(path.read_bytes()[:-40])


def _pointer(folder):
    (folder / "data/chunk-000/file-000.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")


def _no_file(folder):
    (folder / "data/chunk-001/file-000.parquet").unlink()


def _no_episodes(folder):
    shutil.rmtree(folder / "meta/episodes")


def _no_tasks(folder):
    (folder / "meta/tasks.parquet").unlink()


def _fewer_rows(folder):
    edit_table(folder / "meta/episodes/chunk-000/file-000.parquet", lambda columns: columns["length"].__setitem__(1, 9))


def _no_column(folder):
    edit_table(folder / "data/chunk-000/file-000.parquet", lambda columns: columns.pop("action"))


def _gap(folder):
    path = folder / "data/chunk-000/file-000.parquet"
    edit_table(path, lambda columns: columns["frame_index"].__setitem__(2, 7))


def _lacking(folder):
    edit_table(folder / "data/chunk-000/file-000.parquet", lambda columns: columns["action"].__setitem__(2, None))


def _ragged(folder):
    edit_table(folder / "data/chunk-000/file-000.parquet", lambda columns: columns["action"].__setitem__(2, [1.0]))


def _wrong_task(folder):
    edit_table(folder / "data/chunk-000/file-000.parquet", lambda columns: columns["task_index"].__setitem__(2, 9))


def _no_picture(folder):
    cell = {"bytes": None, "path": "frame.png"}
    edit_table(folder / "data/chunk-000/file-000.parquet", lambda columns: columns[CAMERA].__setitem__(2, cell))


def _half_picture(folder):
    cell = {"bytes": _png(pictures(1, 8, 0)[0])["bytes"][:40], "path": None}
    edit_table(folder / "data/chunk-000/file-000.parquet", lambda columns: columns[CAMERA].__setitem__(2, cell))


def _large_picture(folder):
    cell = _png(pictures(1, 12, 0)[0])
    edit_table(folder / "data/chunk-000/file-000.parquet", lambda columns: columns[CAMERA].__setitem__(2, cell))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_version, r"of version v2\.1, v3\.0 is read: convert it with .*convert_dataset_v21_to_v30"),
        (_not_json, r"info\.json is not complete JSON"),
        (_unknown_type, r"the feature action has the type 'float8', known are"),
        (_other_shape, r"action has the shape \[7\] per frame, \[6\] is expected"),
        (_depth, r"colour images \[H, W, 3\] are read, no depth"),
        (_no_rate, r"has no positive fps \(it says 0\)"),
        (_other_rate, r"timestamps do not fit fps = 20: frame 4 is 0\.2000 s off"),
        (_odd_path, r"episode 0 does not say which file holds it"),
        (_truncated, r"file-001\.parquet: not a complete parquet file .*download it again"),
        (_pointer, r"file-000\.parquet: a pointer of Git LFS, not the file itself: git lfs pull"),
        (_no_file, r"no file .*chunk-001/file-000\.parquet, which episode 2 needs"),
        (_no_episodes, r"no episodes listed in"),
        (_no_tasks, r"no file .*tasks\.parquet"),
        (_fewer_rows, r"episode 1 has 3 rows, meta/episodes says 9"),
        (_no_column, r"has no column action, which meta/info\.json names"),
        (_gap, r"episode 0: frame_index does not count the frames"),
        (_lacking, r"action lacks 1 values"),
        (_ragged, r"action has the shape \['different sizes'\] per frame"),
        (_wrong_task, r"episode 0 has the tasks \[0, 9\]; one that meta/tasks\.parquet names"),
        (_no_picture, r"row 2 holds no image"),
        (_half_picture, r"row 2 is not a complete image"),
        (_large_picture, r"row 2 is an image of \[12, 12, 3\], \[8, 8, 3\] is expected"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_damaged_set_is_one_line_and_leaves_nothing(tmp_path, damage, said):
    source = write_foreign(tmp_path / "set", _sentences(), more=_camera())
    damage(source)
    with pytest.raises(LeRobotError, match=said) as error:
        stores.to_store(source, tmp_path / "out", FAKE)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    """A set of four episodes of 6, 4, 6, 4 frames with a video."""
    folder = tmp_path_factory.mktemp("filmed")
    episodes.to_lerobot(write_stores(folder / "demos"), folder / "set", fps=FPS)
    return folder / "set"


def _film(source, target):
    shutil.copytree(source, target)
    return next(target.glob("videos/*/*/*.mp4"))


def test_a_missing_video_is_named_before_anything_is_read(filmed, tmp_path):
    _film(filmed, tmp_path / "set").unlink()
    with pytest.raises(LeRobotError, match=r"no file .*file-000\.mp4, which episode 0 needs"):
        reading.DataSet(tmp_path / "set")


def test_a_video_that_is_cut_off_is_named(filmed, tmp_path):
    path = _film(filmed, tmp_path / "set")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(LeRobotError, match="cannot be decoded"):
        stores.to_store(tmp_path / "set", tmp_path / "out", stores.Choices())
    assert [found.name for found in tmp_path.iterdir()] == ["set"]


def test_a_video_with_too_few_frames_says_how_many(filmed, tmp_path):
    path = _film(filmed, tmp_path / "set")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height = stream.width = 16
        stream.pix_fmt = "yuv420p"
        for image in pictures(8, 16, 0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(LeRobotError, match=r"ends after 2 of the 4 frames from 0\.60 s on"):
        stores.to_store(tmp_path / "set", tmp_path / "out", stores.Choices())


def test_a_video_of_another_rate_is_refused(filmed, tmp_path):
    _film(filmed, tmp_path / "set")
    path = tmp_path / "set/meta/episodes/chunk-000/file-000.parquet"
    name = "videos/observation.images.agentview_rgb/from_timestamp"
    edit_table(path, lambda columns: columns[name].__setitem__(1, 0.65))
    with pytest.raises(LeRobotError, match=r"a frame at .* s, one at .* s is expected for fps = 10"):
        stores.to_store(tmp_path / "set", tmp_path / "out", stores.Choices())


def test_any_episode_of_a_video_can_be_read_first(filmed):
    name = "observation.images.agentview_rgb"
    found = [np.asarray(episode.images[name]).astype(int) for episode in reading.DataSet(filmed).episodes()]
    for images, (length, number) in zip(found, ((6, 0), (4, 1), (6, 0), (4, 1)), strict=True):
        assert np.abs(images - pictures(length, 16, number)).max() <= 8


def test_a_set_without_our_notes_is_read_like_any_other(filmed, tmp_path):
    _film(filmed, tmp_path / "set")
    (tmp_path / "set/meta/cso_jax.json").unlink()
    rows = parquet.read_table(tmp_path / "set/meta/tasks.parquet").to_pydict()
    rows["task"] = _sentences()
    parquet.write_table(arrow.table(rows), tmp_path / "set/meta/tasks.parquet")
    assert stores.to_store(tmp_path / "set", tmp_path / "out", FAKE) == {"left.hdf5": 2, "up.hdf5": 2}
    episode = store.read(tmp_path / "out/left.hdf5")[0][0]
    sizes = {name: values.shape[1:] for name, values in episode.observations.items()}
    assert sizes["joint_states"] == (7,) and sizes["gripper_states"] == (2,) and sizes["state"] == (5,)
    assert episode.arrays["rewards"].tolist() == [0, 0, 0, 0, 1, 1]
    assert json.loads((tmp_path / "set/meta/info.json").read_text())["fps"] == FPS

"""LeRobot data sets: our episode files there and back, and what a set holds on disk."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.lerobot import FPS, arrow, edit_info, parquet, write_stores

from cso_jax.data import __main__ as command
from cso_jax.data import store
from cso_jax.data.lerobot import episodes, reading, stores, writing
from cso_jax.data.lerobot.layout import LeRobotError, entries_of, names_of

av = pytest.importorskip("av", reason="videos need av: pip install av")


def _same(first, second, images=0):
    """Whether two files hold the same, images up to a difference."""
    (one, facts), (other, more) = store.read(first), store.read(second)
    assert facts == more
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a.init == b.init
        for mine, yours in ((a.observations, b.observations), (a.arrays, b.arrays)):
            assert mine.keys() == yours.keys()
            for name, values in mine.items():
                assert values.dtype == yours[name].dtype and values.shape == yours[name].shape, name
                off = np.abs(values.astype(np.float64) - yours[name]).max()
                assert off <= (images if values.ndim == 4 else 0), name
        assert a.attributes.keys() == b.attributes.keys()
        for name, value in a.attributes.items():
            np.testing.assert_array_equal(value, b.attributes[name])


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """(HDF5 files, LeRobot with PNG images, LeRobot with video): to read only."""
    folder = tmp_path_factory.mktemp("sets")
    source = write_stores(folder / "demos")
    for name, video in (("png", False), ("mp4", True)):
        episodes.to_lerobot(source, folder / name, fps=FPS, robot="panda", video=video)
    return source, folder / "png", folder / "mp4"


def test_with_png_images_the_way_back_is_exact(converted, tmp_path):
    source, png, _ = converted
    assert stores.to_store(png, tmp_path / "back", stores.Choices()) == {"pick_it_up.hdf5": 2, "put_it_down.hdf5": 2}
    for path in source.iterdir():
        _same(path, tmp_path / "back" / path.name)


def test_video_loses_little_of_the_images_and_nothing_else(converted, tmp_path):
    source, _, mp4 = converted
    stores.to_store(mp4, tmp_path / "back", stores.Choices())
    for path in source.iterdir():
        _same(path, tmp_path / "back" / path.name, images=8)


def test_a_set_is_laid_out_as_lerobot_expects(converted):
    _, png, mp4 = converted
    info = json.loads((mp4 / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["robot_type"] == "panda" and info["fps"] == FPS
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (4, 20, 2)
    names = info["features"]["observation.state"]["names"]
    assert names == [*names_of("gripper_states", 2), *names_of("joint_states", 7), *names_of("state", 5)]
    assert info["features"]["observation.environment_state"]["shape"] == [5]
    assert info["features"]["observation.images.agentview_rgb"]["dtype"] == "video"
    table = parquet.read_table(mp4 / "data/chunk-000/file-000.parquet")
    assert set(table.column_names) == {name for name, facts in info["features"].items() if facts["dtype"] != "video"}
    assert table.schema.field("action").type == arrow.list_(arrow.float32(), 7)
    assert table.column("index").to_pylist() == list(range(20))
    np.testing.assert_allclose(table.column("timestamp").to_pylist()[6:10], np.arange(4) / FPS, atol=1e-6)
    assert table.column("next.success").to_pylist()[:6] == [False] * 4 + [True] * 2
    listed = parquet.read_table(mp4 / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["dataset_from_index"] for row in listed] == [0, 6, 10, 16]
    assert [row["videos/observation.images.agentview_rgb/from_timestamp"] for row in listed] == [0.0, 0.6, 1.0, 1.6]
    assert [row["tasks"] for row in listed] == [["pick it up"]] * 2 + [["put it down"]] * 2
    assert all(row["success"] for row in listed)
    image = parquet.read_schema(png / "data/chunk-000/file-000.parquet").field("observation.images.agentview_rgb").type
    assert image == arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])


def test_sentences_are_the_index_that_pandas_sees(converted):
    schema = parquet.read_schema(converted[1] / "meta/tasks.parquet")
    assert json.loads(schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_statistics_are_those_of_all_frames(converted):
    source, png, _ = converted
    found = json.loads((png / "meta/stats.json").read_text())
    actions = np.concatenate([episode.arrays["actions"] for path in sorted(source.iterdir())
                              for episode in store.read(path, images=False)[0]]).astype(np.float64)  # fmt: skip
    np.testing.assert_allclose(found["action"]["mean"], actions.mean(0))
    np.testing.assert_allclose(found["action"]["std"], actions.std(0))
    np.testing.assert_allclose(found["action"]["q10"], np.quantile(actions, 0.1, axis=0))
    assert found["action"]["count"] == [20]
    assert np.shape(found["observation.images.agentview_rgb"]["mean"]) == (3, 1, 1)


def test_every_second_frame_of_a_video_is_a_key_frame(converted):
    with av.open(str(next(converted[2].glob("videos/*/*/*.mp4")))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", FPS)
        packets = [packet for packet in container.demux(stream) if packet.size]
    assert [packet.is_keyframe for packet in packets] == [True, False] * 10


@pytest.mark.parametrize("video", [False, True], ids=["png", "mp4"])
def test_many_files_and_chunks_are_read_like_one(converted, tmp_path, video):
    limits = writing.Limits(data_bytes=1, video_bytes=1, files_per_chunk=2)
    episodes.to_lerobot(converted[0], tmp_path / "set", fps=FPS, video=video, limits=limits)
    names = sorted(str(path.relative_to(tmp_path / "set/data")) for path in tmp_path.glob("set/data/*/*"))
    assert names == [f"chunk-{chunk:03d}/file-{file:03d}.parquet" for chunk in (0, 1) for file in (0, 1)]
    assert len(list(tmp_path.glob("set/videos/*/chunk-00[01]/file-00[01].mp4"))) == 4 * video
    whole, parts = (list(reading.DataSet(place).episodes()) for place in (converted[1 + video], tmp_path / "set"))
    for one, other in zip(whole, parts, strict=True):
        assert one.sentence == other.sentence
        for name, values in one.columns.items():
            np.testing.assert_array_equal(values, other.columns[name])
        for name, frames in one.images.items():
            # A new file begins with a key frame, so another choice of the codec.
            off = np.abs(np.asarray(frames).astype(int) - np.asarray(other.images[name]))
            assert off.max() <= 8 * video


@pytest.mark.parametrize(("orientation", "turned"), [("flip", np.s_[:, ::-1]), ("rotate180", np.s_[:, ::-1, ::-1])])
def test_images_can_be_turned_over_on_the_way(converted, tmp_path, orientation, turned):
    source, png, _ = converted
    episodes.to_lerobot(source, tmp_path / "set", fps=FPS, orientation=orientation, video=False)
    name = "observation.images.agentview_rgb"
    before, after = (
        np.asarray(next(reading.DataSet(place).episodes()).images[name]) for place in (png, tmp_path / "set")
    )
    np.testing.assert_array_equal(before[turned], after)
    stores.to_store(tmp_path / "set", tmp_path / "back", stores.Choices(orientation=orientation))
    _same(source / "pick_it_up.hdf5", tmp_path / "back/pick_it_up.hdf5")


def test_the_command_converts_both_ways(tmp_path, capsys):
    write_stores(tmp_path / "demos", tasks=("pick_it_up",))  # one task, so all arrays are even
    arguments = ["convert", str(tmp_path / "demos"), str(tmp_path / "set"), "--video=false", "--fps=5", "--robot=x"]
    assert command.main(arguments) == 0
    assert "2 episodes" in capsys.readouterr().out
    assert reading.DataSet(tmp_path / "set").fps == 5
    assert command.main(["convert", str(tmp_path / "set"), str(tmp_path / "back")]) == 0
    assert "2 episodes in 1 file:" in capsys.readouterr().out
    _same(tmp_path / "demos/pick_it_up.hdf5", tmp_path / "back/pick_it_up.hdf5")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--fps=2.5"], "--fps must be a whole number"),
        (["--to=rlds"], "--to must be one of lerobot, hdf5"),
        (["--images=mirror"], "--images must be one of as_is, rotate180, flip"),
        (["--proprio=ee8"], "--proprio has no effect on the way to lerobot"),
        (["--to=hdf5", "--cameras=image"], "--cameras takes pairs THEIRS:OURS"),
        (["--to=hdf5"], "no LeRobot data set in"),
    ],
)
def test_options_that_make_no_sense_are_one_line(tmp_path, capsys, options, said):
    write_stores(tmp_path / "demos", tasks=("pick_it_up",))
    assert command.main(["convert", str(tmp_path / "demos"), str(tmp_path / "set"), *options]) == 1
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demos"]


def test_nothing_is_written_over(converted, tmp_path):
    (tmp_path / "kept").write_text("kept")
    for out, kind in ((tmp_path, "a folder with something in it"), (tmp_path / "kept", "a file")):
        with pytest.raises(LeRobotError, match=f"is {kind}; name a new or an empty folder"):
            episodes.to_lerobot(converted[0], out, fps=FPS)
    with pytest.raises(LeRobotError, match="name a new or an empty folder"):
        stores.to_store(converted[1], tmp_path, stores.Choices())
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    (tmp_path / "empty").mkdir()
    assert episodes.to_lerobot(converted[0], tmp_path / "empty", fps=FPS) == 4


def test_of_a_full_disk_nothing_is_left(converted, tmp_path, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(LeRobotError, match="No space left on device; nothing of it"):
        patch.setattr(writing.Writer, "close", full)
        episodes.to_lerobot(converted[0], tmp_path / "set", fps=FPS)
    with monkeypatch.context() as patch, pytest.raises(LeRobotError, match="No space left on device; nothing of it"):
        patch.setattr(store, "write", full)
        stores.to_store(converted[1], tmp_path / "back", stores.Choices())
    assert not list(tmp_path.iterdir())


def test_episodes_of_different_kinds_are_told_apart(tmp_path):
    write_stores(tmp_path / "demos", tasks=("a",))
    write_stores(tmp_path / "demos", tasks=("b",), size=18)
    with pytest.raises(LeRobotError, match=r"b\.hdf5: observation\.images\.agentview_rgb of train:b:0 .*sets of their"):
        episodes.to_lerobot(tmp_path / "demos", tmp_path / "set", fps=FPS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demos"]


def test_odd_images_need_png(tmp_path):
    write_stores(tmp_path / "demos", size=15)
    with pytest.raises(LeRobotError, match="15 x 15: video needs even sizes; --video=false"):
        episodes.to_lerobot(tmp_path / "demos", tmp_path / "set", fps=FPS)
    assert episodes.to_lerobot(tmp_path / "demos", tmp_path / "set", fps=FPS, video=False) == 4


def test_a_folder_without_episode_files_is_named(tmp_path):
    write_stores(tmp_path / "run/demos")
    with pytest.raises(LeRobotError, match=r"no episode files \*\.hdf5 in .*run; there are some in its demos"):
        episodes.to_lerobot(tmp_path / "run", tmp_path / "set", fps=FPS)


def test_a_missing_package_is_one_line_with_the_command(converted, tmp_path, monkeypatch):
    from cso_jax.data.lerobot import layout

    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(layout.importlib, "import_module", missing)
    with pytest.raises(LeRobotError, match="need the package pyarrow: pip install pyarrow av"):
        episodes.to_lerobot(converted[0], tmp_path / "set", fps=FPS)


def test_features_that_were_added_later_are_named(converted, tmp_path):
    episodes.to_lerobot(converted[0], tmp_path / "set", fps=FPS, video=False)
    edit_info(tmp_path / "set", lambda info: info["features"].update(extra=info["features"]["action"]))
    with pytest.raises(LeRobotError, match="knows no feature extra, which was added later"):
        stores.to_store(tmp_path / "set", tmp_path / "back", stores.Choices())


def test_an_episode_cannot_name_a_file_elsewhere(converted, tmp_path):
    episodes.to_lerobot(converted[0], tmp_path / "set", fps=FPS, video=False)
    path = tmp_path / "set/meta/episodes/chunk-000/file-000.parquet"
    table = parquet.read_table(path).to_pylist()
    parquet.write_table(arrow.Table.from_pylist([{**row, "cso_jax/file": "../out.hdf5"} for row in table]), path)
    with pytest.raises(LeRobotError, match=r"names the file '\.\./out\.hdf5'"):
        stores.to_store(tmp_path / "set", tmp_path / "back", stores.Choices())
    assert not Path(tmp_path / "out.hdf5").exists()


def test_names_say_which_entry_a_number_belongs_to():
    names = (*names_of("a.b", 2), *names_of("c", 1))
    assert entries_of(names) == {"a.b": slice(0, 2), "c": slice(2, 3)}
    for other in ((), ("x", "y"), ("shoulder.pos", "elbow.pos"), ("a.0", "a.2"), ("a.0", "b.0", "a.1"), ("a.1",)):
        assert entries_of(other) == {}


def test_arrays_of_different_sizes_lie_beside_the_set(converted, tmp_path):
    source, png, _ = converted
    assert "states" not in reading.DataSet(png).features
    assert json.loads((png / episodes.OWN).read_text())["beside"] == ["states"]
    episodes.to_lerobot(source / "pick_it_up.hdf5", tmp_path / "one", fps=FPS, video=False)
    assert reading.DataSet(tmp_path / "one").features["states"].shape == (len("pick_it_up"),)
    assert not (tmp_path / "one" / episodes.BESIDE).exists()
    shutil.copytree(png, tmp_path / "set")
    (tmp_path / "set" / episodes.BESIDE).unlink()
    with pytest.raises(store.StoreError, match=r"cso_jax\.hdf5"):
        stores.to_store(tmp_path / "set", tmp_path / "back", stores.Choices())


def test_decisions_of_chunks_come_back_too(tmp_path):
    """As R-SFT stores its successes: a row is a decision, its action a chunk; several tasks in a file."""
    rng = np.random.default_rng(0)
    rows = []
    for number, task in enumerate(("left", "up")):
        arrays = {"actions": rng.normal(size=(3, 8, 2)).astype(np.float32), "skills": rng.integers(0, 9, (3, 4)),
                  "rewards": np.array([0, 0, 1], np.float32), "dones": np.array([0, 0, 1], np.uint8)}  # fmt: skip
        observations = {"state": rng.normal(size=(3, 4)).astype(np.float32)}
        rows.append(store.StoredEpisode(f"train:{task}:{number}", observations, arrays))
    store.write(tmp_path / "rsft/wave_00000.hdf5", rows, {"cursors": {"left": {"rollouts": 3}}})
    episodes.to_lerobot(tmp_path / "rsft", tmp_path / "set", fps=FPS)
    data = reading.DataSet(tmp_path / "set")
    assert data.features["action"].shape == (8, 2) and list(data.tasks.values()) == ["go left", "go up"]
    stores.to_store(tmp_path / "set", tmp_path / "back", stores.Choices())
    _same(tmp_path / "rsft/wave_00000.hdf5", tmp_path / "back/wave_00000.hdf5")


def test_an_interruption_leaves_nothing(converted, tmp_path, monkeypatch):
    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(writing.Writer, "add", interrupt)
    assert command.main(["convert", str(converted[0]), str(tmp_path / "set")]) == 130
    assert not list(tmp_path.iterdir())

"""Episode files, chunk windows, batch order and packing."""

import h5py
import numpy as np
import pytest

from cso_jax.data import store
from cso_jax.data.dataset import BatchOrder, ChunkWindows, History, Rows, StoredImages, prefetched
from cso_jax.data.packing import balanced_bins, minibatches
from cso_jax.envs.protocol import ChunkFrame


def episode(steps, seed=0, images=False):
    rng = np.random.default_rng(seed)
    observations = {"state": rng.normal(size=(steps, 3)).astype(np.float32)}
    if images:
        observations["camera"] = rng.integers(0, 255, (steps, 8, 8, 3), np.uint8)
    return store.StoredEpisode(f"train:reach-v3:{seed}", observations, {"actions": rng.normal(size=(steps, 4))})


def test_store_round_trip(tmp_path):
    path = tmp_path / "reach.hdf5"
    episodes = [episode(5, 0, images=True), episode(12, 1, images=True)]
    store.write(path, episodes, {"attempts": 3, "env_args": {"task": "reach-v3"}})
    read, attributes = store.read(path)
    assert attributes["attempts"] == 3 and attributes["env_args"] == {"task": "reach-v3"} and attributes["total"] == 17
    for before, after in zip(episodes, read, strict=True):
        assert before.init == after.init
        np.testing.assert_array_equal(before.arrays["actions"], after.arrays["actions"])
        np.testing.assert_array_equal(before.observations["camera"], after.observations["camera"])
    assert "camera" not in store.read(path, images=False)[0][0].observations


def test_layout_is_that_of_robomimic(tmp_path):
    path = tmp_path / "reach.hdf5"
    store.write(path, [episode(5)], {})
    with h5py.File(path) as file:
        assert file["data"].attrs["total"] == 5
        assert file["data/demo_0"].attrs["num_samples"] == 5
        assert file["data/demo_0/obs/state"].shape == (5, 3)
        assert file["data/demo_0/actions"].shape == (5, 4)


def test_truncated_file_is_refused(tmp_path):
    path = tmp_path / "reach.hdf5"
    store.write(path, [episode(500)], {})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(store.StoreError, match="not a complete episode file"):
        store.read(path)
    moved = store.quarantine(path, "damaged")
    assert moved.exists() and not path.exists()
    with pytest.raises(store.StoreError, match="no episode file"):
        store.read(path)


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "reach.hdf5"
    store.write(path, [episode(5)], {})
    with pytest.raises(TypeError, match="object"):
        store.write(path, [episode(6)], {"bad": object()})
    assert len(store.read(path)[0][0]) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["reach.hdf5"]


def test_windows_repeat_the_last_action():
    windows = ChunkWindows([np.arange(3.0)[:, None], np.arange(10, 14.0)[:, None]], chunk_length=3)
    assert len(windows) == 7
    taken = windows.take(np.array([0, 1, 2, 3, 5, 6]))[..., 0]
    np.testing.assert_array_equal(taken, [[0, 1, 2], [1, 2, 2], [2, 2, 2], [10, 11, 12], [12, 13, 13], [13, 13, 13]])


def test_windows_are_relative_to_what_was_seen_at_their_start():
    # The first dimension: (action - (2 seen + 1)) / 0.5; the second stays as it is.
    frame = ChunkFrame("joints", scale=(2.0, 0.0), offset=(1.0, 0.0), spread=(0.5, 1.0))
    actions = np.array([[1.0, 0], [2, 1], [3, 1]])
    seen = np.array([[0.0, 9], [0.5, 9], [1, 9]])
    windows = ChunkWindows([actions], chunk_length=2, frame=frame, seen=[seen])
    taken = windows.take(np.array([0, 1, 2]))
    np.testing.assert_array_equal(taken, [[[0, 0], [2, 1]], [[0, 1], [2, 1]], [[0, 1], [0, 1]]])
    np.testing.assert_array_equal(frame.absolute(taken, seen), [actions[:2], actions[1:], actions[[2, 2]]])


def test_a_frame_of_units_alone_does_not_read_the_entry():
    frame = ChunkFrame("gripper", scale=(0.0, 0.0), offset=(0.0, 0.0), spread=(0.5, 2.0))
    chunks, seen = np.array([[[1.0, 1.0], [2.0, 4.0]]], np.float32), np.zeros((1, 5), np.float32)
    np.testing.assert_array_equal(frame.relative(chunks, seen), [[[2.0, 0.5], [4.0, 2.0]]])
    np.testing.assert_array_equal(frame.absolute(frame.relative(chunks, seen), seen), chunks)


def test_batch_order_is_a_stream_of_permutations():
    order = BatchOrder(4, 10, seed=3)
    stream = np.concatenate([order(step) for step in range(5)])
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    # A resumed run starts in the middle.
    np.testing.assert_array_equal(BatchOrder(4, 10, seed=3)(3), stream[12:16])
    assert BatchOrder(25, 10, seed=0)(0).shape == (25,)


def test_stored_images_are_rows(tmp_path):
    paths = [tmp_path / "a.hdf5", tmp_path / "b.hdf5"]
    episodes = [episode(5, 0, images=True), episode(7, 1, images=True)]
    for path, one in zip(paths, episodes, strict=True):
        store.write(path, [one], {})
    images = StoredImages([(path, "data/demo_0/obs/camera") for path in paths])
    both = np.concatenate([one.observations["camera"] for one in episodes])
    rows = np.array([11, 0, 5, 4])
    np.testing.assert_array_equal(images[rows], both[rows])
    taken = Rows({"camera": images, "task": np.arange(12)}).take(rows)
    np.testing.assert_array_equal(taken["task"], rows)
    with pytest.raises(ValueError, match="equally many rows"):
        Rows({"camera": images, "task": np.arange(3)})


def test_history_repeats_the_first_row_of_an_episode():
    column = History(np.arange(10, 17), [3, 4], 3)
    taken = Rows({"state": column}).take(np.array([0, 1, 2, 3, 6]))["state"]
    np.testing.assert_array_equal(taken, [[10, 10, 10], [10, 10, 11], [10, 11, 12], [13, 13, 13], [14, 15, 16]])
    images = History(np.arange(2 * 4 * 3).reshape(2, 2, 2, 3), [2], 2)[np.array([1])]
    assert images.shape == (1, 2, 2, 2, 3)


def test_prefetched_is_in_order():
    assert list(prefetched(lambda step: step * step, range(2, 5))) == [(2, 4), (3, 9), (4, 16)]
    assert list(prefetched(lambda step: step, [])) == []


def packed_episodes(lengths):
    return [
        {"skill": np.full((length, 2), index), "advantage": np.full(length, 0.5 * index, np.float32)}
        for index, length in enumerate(lengths)
    ]


def test_minibatches_hold_whole_episodes():
    lengths = [3, 5, 2, 4, 1]
    episodes = packed_episodes(lengths)
    batches = minibatches(episodes, size=6, seed=0)
    seen = {}
    for batch in batches:
        assert all(len(column) == 6 for column in batch.values())
        real = batch["mask"] == 1
        for identity in np.unique(batch["episode_id"][real]):
            rows = real & (batch["episode_id"] == identity)
            index = int(batch["skill"][rows][0, 0])
            assert (batch["skill"][rows] == index).all()
            assert rows.sum() == lengths[index]
            np.testing.assert_allclose(batch["advantage"][rows], 0.5 * index)
            seen[index] = seen.get(index, 0) + 1
        np.testing.assert_allclose(batch["episodes"], 5 / len(batches))
    assert seen == dict.fromkeys(range(5), 1)
    with pytest.raises(ValueError, match="an item has 5 skills"):
        minibatches(episodes, size=4, seed=0)
    assert minibatches([], size=4, seed=0) == []


@pytest.mark.parametrize("seed", range(20))
def test_minibatches_are_balanced(seed):
    """Successes are short and failures run to the horizon; every minibatch must weigh them as the whole does."""
    rng = np.random.default_rng(seed)
    failures = int(rng.integers(40, 200))
    lengths = np.concatenate([np.full(failures, 25), rng.integers(4, 20, 320 - failures)])
    batches = minibatches(packed_episodes(lengths), size=256, seed=seed)
    skills = [int(batch["mask"].sum()) for batch in batches]
    assert sum(skills) == lengths.sum()
    assert len(batches) <= -(-lengths.sum() // 256) + 1
    assert max(skills) - min(skills) <= 12
    long = [len(np.unique(batch["episode_id"][lengths[batch["skill"][:, 0]] == 25])) for batch in batches]
    assert max(long) - min(long) <= 1
    found = np.concatenate([np.unique(batch["skill"][batch["mask"] == 1]) for batch in batches])
    assert sorted(found) == list(range(320))


def test_minibatches_are_a_function_of_the_seed():
    lengths = np.random.default_rng(1).integers(1, 9, 40)
    episodes = packed_episodes(lengths)

    def order(seed):
        return [batch["skill"].tolist() for batch in minibatches(episodes, size=16, seed=seed)]

    assert order(3) == order(3)
    assert order(3) != order(4)


def test_a_bin_more_where_greedy_filling_leaves_something_over():
    # 3 + 3 + 2 + 2 + 2 fill two bins of 6 exactly, but the longest first make 3+2, 3+2 and a rest.
    bins = balanced_bins(np.array([3, 3, 2, 2, 2]), size=6, seed=0)
    assert len(bins) == 3
    assert sorted(np.concatenate(bins)) == [0, 1, 2, 3, 4]


def test_items_that_are_not_episodes_have_their_own_names():
    pairs = [{"sign": np.float32([1.0, -1.0])}, {"sign": np.float32([1.0, 1.0, -1.0])}]
    (batch,) = minibatches(pairs, size=6, seed=0, item_id="pair_id", item_count="pairs")
    assert set(batch) == {"sign", "pair_id", "pairs", "mask"}
    assert sorted(np.bincount(batch["pair_id"][batch["mask"] == 1])) == [2, 3]
    np.testing.assert_array_equal(batch["pairs"], 2.0)

"""Small episode files and LeRobot data sets for tests; other programs' sets are written here without the package."""

import json

import numpy as np
import pytest

from cso_jax.data import store

arrow = pytest.importorskip("pyarrow", reason="LeRobot data sets need pyarrow: pip install pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

FPS = 10


def pictures(length, size, seed):
    """Smooth images `[N, H, W, 3]`: a video codec keeps those well."""
    steps = np.arange(length)[:, None, None, None]
    rows, columns = np.arange(size)[None, :, None, None], np.arange(size)[None, None, :, None]
    colour = np.array([20, 60, 100])[None, None, None]
    return (colour + 3 * rows + 2 * columns + 5 * steps + 11 * seed).astype(np.uint8)


def episode(task, number, length=6, size=16):
    """As a scripted expert's demonstration is stored, with an array and an attribute of its own."""
    rng = np.random.default_rng(100 * len(task) + number)
    steps = np.arange(length)
    observations = {
        "joint_states": rng.normal(size=(length, 7)).astype(np.float32),
        "gripper_states": rng.normal(size=(length, 2)).astype(np.float32),
        "state": rng.normal(size=(length, 5)).astype(np.float32),
        "agentview_rgb": pictures(length, size, number),
    }
    arrays = {
        "actions": rng.uniform(-1, 1, (length, 7)).astype(np.float32),
        "expert_actions": rng.uniform(-1, 1, (length, 7)).astype(np.float32),
        "rewards": (steps >= length - 2).astype(np.float32),
        "dones": (steps == length - 1).astype(np.uint8),
        "codes": rng.integers(0, 9, (length, 2, 3)).astype(np.int32),
        "states": rng.normal(size=(length, len(task))),  # of another size in every task, as a simulator's are
    }
    attributes = {"plan": ["reach", "lift"], "place": rng.normal(size=3), "trial": number}
    return store.StoredEpisode(f"train:{task}:{number}", observations, arrays, attributes)


def write_stores(folder, tasks=("pick_it_up", "put_it_down"), lengths=(6, 4), size=16):
    for task in tasks:
        episodes = [episode(task, number, length, size) for number, length in enumerate(lengths)]
        problem = {"language_instruction": task.replace("_", " ")}
        store.write(folder / f"{task}.hdf5", episodes, {"problem_info": problem, "noise": 0.25})
    return folder


def write_foreign(folder, sentences, *, lengths=(5, 3, 4), state=8, more=None, change=None):
    """A set as other programs write them: a file per episode, two files to a chunk, without names or success.

    `more` are further features, name -> (facts, values of a length); `change(info)` changes info.json.
    """
    features = {
        "observation.state": {"dtype": "float32", "shape": [state], "names": {"motors": ["m"] * state}},
        "action": {"dtype": "float32", "shape": [7], "names": None},
        **{name: facts for name, (facts, _) in (more or {}).items()},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        **{
            name: {"dtype": "int64", "shape": [1], "names": None}
            for name in ("frame_index", "episode_index", "index", "task_index")
        },
    }
    rows, first = [], 0
    for number, length in enumerate(lengths):
        rng = np.random.default_rng(number)
        chunk, file = divmod(number, 2)
        columns = {
            "observation.state": rng.normal(size=(length, state)).astype(np.float32).tolist(),
            "action": rng.uniform(-1, 1, (length, 7)).astype(np.float32).tolist(),
            **{name: values(length) for name, (_, values) in (more or {}).items()},
            "timestamp": (np.arange(length) / FPS).astype(np.float32),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, number),
            "index": first + np.arange(length),
            "task_index": np.full(length, number % len(sentences)),
        }
        path = folder / f"data/chunk-{chunk:03d}/file-{file:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(arrow.table({name: arrow.array(values) for name, values in columns.items()}), path)
        rows.append({"episode_index": number, "tasks": [sentences[number % len(sentences)]], "length": length,
                     "data/chunk_index": chunk, "data/file_index": file, "dataset_from_index": first,
                     "dataset_to_index": first + length, "stats/action/max": [1.0]})  # fmt: skip
        first += length
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    parquet.write_table(arrow.Table.from_pylist(rows), folder / "meta/episodes/chunk-000/file-000.parquet")
    tasks = {"task_index": list(range(len(sentences))), "__index_level_0__": list(sentences)}
    parquet.write_table(arrow.table(tasks), folder / "meta/tasks.parquet")
    info = {"codebase_version": "v3.0", "fps": FPS, "features": features, "total_episodes": len(rows),
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"}  # fmt: skip
    (change or (lambda info: None))(info)
    (folder / "meta/info.json").write_text(json.dumps(info))
    return folder


def edit_info(folder, change):
    """The set after `change(info)`."""
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def edit_table(path, change):
    """The parquet file after `change(columns)`, which maps names to lists."""
    table = parquet.read_table(path)
    columns = table.to_pydict()
    change(columns)
    schema = arrow.schema([field for field in table.schema if field.name in columns])
    parquet.write_table(arrow.Table.from_pydict(columns, schema=schema), path)

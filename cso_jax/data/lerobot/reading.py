"""A LeRobot data set of version 3.0 from disk: its episodes in order, checked, with images decoded on demand."""

import dataclasses
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cso_jax.data.lerobot.layout import (
    DATA,
    INDICES,
    INFO,
    NUMBERS,
    PICTURES,
    TASKS,
    VERSION,
    VIDEO,
    WORDS,
    Feature,
    Frames,
    LeRobotError,
    package,
)

_TOLERANCE_S = 1e-3  # of a timestamp: float32 seconds, and rates such as 1/30 rounded
_NEAR = 0.3  # of the time between two frames, by which a video's frame may miss its row


@dataclasses.dataclass(frozen=True)
class Episode:
    """One episode of N frames. `columns`: the numeric features, `[N, ...]`, those of one number `[N]`, indices left
    out. `images`: what the set calls `observation.images.KEY`. `row`: what `meta/episodes` says of it.
    """

    index: int
    sentence: str
    columns: Mapping[str, np.ndarray]
    images: Mapping[str, Frames]
    row: Mapping[str, Any]


class DataSet:
    """A data set's metadata; `episodes()` reads the rest. Raises LeRobotError for anything that is no such set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = _info(folder)
        self.fps = self.info["fps"]
        self.features = _features(folder / INFO, self.info["features"])
        self.tasks = _tasks(folder / TASKS)
        self.rows = _episode_rows(folder)
        self._check_files()

    def __len__(self) -> int:
        return len(self.rows)

    def episodes(self) -> Iterator[Episode]:
        """Every episode, in the order of the set. Raises LeRobotError at the first that is damaged."""
        path, table = None, None
        for row in self.rows:
            # Episodes of a file follow one another: it is opened and read once.
            if path != self._data_path(row):
                path = self._data_path(row)
                table = self._numbers(path)
            assert path is not None and table is not None
            yield self._episode(path, table, row)

    def _data_path(self, row: Mapping[str, Any]) -> Path:
        return self._path("data_path", DATA, row, "data", {})

    def _video_path(self, row: Mapping[str, Any], key: str) -> Path:
        return self._path("video_path", VIDEO, row, f"videos/{key}", {"video_key": key})

    def _path(self, name: str, default: str, row: Mapping[str, Any], prefix: str, more: dict[str, str]) -> Path:
        template = self.info.get(name) or default
        try:
            numbers = {part: int(row[f"{prefix}/{part}"]) for part in ("chunk_index", "file_index")}
            return self.folder / template.format(**numbers, **more)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise LeRobotError(
                f"{self.folder}: episode {row['episode_index']} does not say which file holds it ({prefix}/chunk_index "
                f"and /file_index, {name} {template!r}); download meta/ again"
            ) from error

    def _check_files(self) -> None:
        for row in self.rows:
            videos = [self._video_path(row, key) for key, feature in self.features.items() if feature.dtype == "video"]
            for path in (self._data_path(row), *videos):
                if not path.is_file():
                    raise LeRobotError(
                        f"no file {path}, which episode {row['episode_index']} needs; download the set again, whole"
                    )

    def _numbers(self, path: Path) -> dict[str, np.ndarray]:
        """The numeric columns of a data file by feature, indices among them."""
        wanted = [feature for feature in self.features.values() if feature.dtype in NUMBERS]
        file = _opened(path)
        missing = [name for name in self.features
                   if self.features[name].dtype != "video" and name not in file.schema_arrow.names]  # fmt: skip
        if missing:
            raise LeRobotError(f"{path} has no column {missing[0]}, which {INFO} names; download the set again, whole")
        table = _read(path, lambda: file.read(columns=[feature.name for feature in wanted]))
        return {feature.name: _values(path, table.column(feature.name), feature) for feature in wanted}

    def _episode(self, path: Path, table: Mapping[str, np.ndarray], row: Mapping[str, Any]) -> Episode:
        number, length = int(row["episode_index"]), int(row["length"])
        places = np.flatnonzero(table["episode_index"] == number)
        where = f"{path}: episode {number}"
        if len(places) != length or (length and places[-1] - places[0] != length - 1):
            raise LeRobotError(f"{where} has {len(places)} rows, meta/episodes says {length}, one after the other; "
                               "download the set again, whole")  # fmt: skip
        if not length:
            raise LeRobotError(f"{where} has no frames; leave it out of the set")
        rows = slice(int(places[0]), int(places[0]) + length)
        columns = {name: values[rows] for name, values in table.items()}
        _check_times(where, columns, self.fps)
        named = np.unique(columns["task_index"])
        if len(named) != 1 or int(named[0]) not in self.tasks:
            raise LeRobotError(f"{where} has the tasks {named.tolist()}; one that {TASKS} names is expected (there are "
                               f"{len(self.tasks)}): split the episode, or mend its task_index")  # fmt: skip
        return Episode(
            number,
            self.tasks[int(named[0])],
            {name: values for name, values in columns.items() if name not in INDICES},
            {name: self._frames(path, feature, row, rows)
             for name, feature in self.features.items() if feature.dtype in PICTURES},
            row,
        )  # fmt: skip

    def _frames(self, path: Path, feature: Feature, row: Mapping[str, Any], rows: slice) -> Frames:
        shape = (rows.stop - rows.start, *feature.pixels)
        if feature.dtype == "image":
            return Frames(shape, lambda: _pictures(path, feature.name, rows, shape))
        video = self._video_path(row, feature.name)
        start = row.get(f"videos/{feature.name}/from_timestamp")
        if start is None:
            raise LeRobotError(f"{self.folder}: episode {row['episode_index']} has no videos/{feature.name}/"
                               "from_timestamp; download meta/ again")  # fmt: skip
        return Frames(shape, lambda: _decoded(video, float(start), shape, self.fps))


def is_data_set(folder: Path) -> bool:
    """Whether a folder looks like a LeRobot data set, of whatever version."""
    return (folder / INFO).is_file()


def _info(folder: Path) -> dict[str, Any]:
    path = folder / INFO
    if not path.is_file():
        raise LeRobotError(f"no LeRobot data set in {folder}: there is no {INFO}; name the folder that holds meta/")
    try:
        info = json.loads(path.read_text())
    except ValueError as error:
        raise LeRobotError(f"{path} is not complete JSON ({error}); download it again") from error
    version = str(info.get("codebase_version", "none")) if isinstance(info, dict) else "none"
    if version.startswith(("v2", "v1")):
        raise LeRobotError(
            f"{folder} is a LeRobot data set of version {version}, {VERSION} is read: convert it with LeRobot's own "
            "python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=NAME (versions before 2.1 need LeRobot's "
            "conversion to 2.1 first)"
        )
    if not version.startswith("v3."):
        raise LeRobotError(f"{path} names the version {version}; {VERSION} is read: take a set of that version")
    rate = info.get("fps")
    if not isinstance(rate, int | float) or not rate > 0 or not isinstance(info.get("features"), dict):
        raise LeRobotError(f"{path} has no positive fps (it says {rate!r}) or no features; download it again")
    return info


def _features(path: Path, listed: Mapping[str, Any]) -> dict[str, Feature]:
    known = (*NUMBERS, *PICTURES, *WORDS)
    found: dict[str, Feature] = {}
    for name, facts in listed.items():
        dtype, shape, names = (facts.get(part) for part in ("dtype", "shape", "names"))
        if dtype not in known:
            raise LeRobotError(f"{path}: the feature {name} has the type {dtype!r}, known are {', '.join(known)}")
        if dtype in WORDS:
            continue
        if not isinstance(shape, list) or not all(isinstance(size, int) and size > 0 for size in shape):
            raise LeRobotError(f"{path}: the feature {name} has the shape {shape!r}, a list of sizes is expected")
        # Some sets group the names: {"motors": ["x", "y"]}.
        flat = next(iter(names.values()), []) if isinstance(names, dict) else names or []
        found[name] = Feature(name, dtype, tuple(shape), tuple(map(str, flat if isinstance(flat, list) else [])))
        if dtype in PICTURES and (len(shape) != 3 or found[name].pixels[-1] != 3):
            raise LeRobotError(f"{path}: {name} has the shape {shape}; colour images [H, W, 3] are read, no depth")
    missing = [name for name in INDICES if name not in found]
    if missing:
        raise LeRobotError(f"{path} names no feature {missing[0]}, which every set has; download it again")
    return found


def _tasks(path: Path) -> dict[int, str]:
    table = _read(path, lambda: _opened(path).read())
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    # pandas calls an index without a name __index_level_0__.
    words = next((values for name, values in columns.items() if values and isinstance(values[0], str)), None)
    if words is None or "task_index" not in columns:
        raise LeRobotError(f"{path} holds {', '.join(columns)}; task_index and a sentence are expected")
    return dict(zip(columns["task_index"], words, strict=True))


def _episode_rows(folder: Path) -> list[dict[str, Any]]:
    paths = sorted((folder / "meta/episodes").glob("*/*.parquet"))
    if not paths:
        raise LeRobotError(f"no episodes listed in {folder}/meta/episodes; download meta/ again")
    rows: list[dict[str, Any]] = []
    for path in paths:
        file = _opened(path)
        # The statistics of each episode are large, and nothing here reads them.
        names = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
        absent = {"episode_index", "length"} - set(names)
        if absent:
            raise LeRobotError(f"{path} has no column {min(absent)}; download meta/ again")
        rows += _read(path, lambda file=file, names=names: file.read(columns=names)).to_pylist()  # type: ignore[misc]
    return sorted(rows, key=lambda row: row["episode_index"])


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise LeRobotError(f"no file {path}; download the set again, whole")
    return _read(path, lambda: package("pyarrow.parquet").ParquetFile(path))


def _read(path: Path, read: Any) -> Any:
    arrow = package("pyarrow")
    try:
        return read()
    except (arrow.ArrowException, OSError) as error:
        with open(path, "rb") as file:
            pointer = file.read(8) == b"version "
        why = "a pointer of Git LFS, not the file itself: git lfs pull" if pointer else (
            f"not a complete parquet file ({' '.join(str(error).split())[:80]}); download it again")  # fmt: skip
        raise LeRobotError(f"{path}: {why}") from error


def _values(path: Path, column: Any, feature: Feature) -> np.ndarray:
    """A column as numbers `[rows, ...]`, `[rows]` for features of one number."""
    arrow = package("pyarrow")
    rows, found = len(column), [1]
    array = column.combine_chunks()
    if isinstance(array, arrow.ChunkedArray):  # of some versions, and for no chunks at all
        array = arrow.concat_arrays(array.chunks) if array.num_chunks else arrow.array([], array.type)
    while True:
        if array.null_count:
            raise LeRobotError(f"{path}: {feature.name} lacks {array.null_count} values; fill them, or download again")
        array = getattr(array, "storage", array)
        if not (arrow.types.is_list(array.type) or arrow.types.is_large_list(array.type)
                or arrow.types.is_fixed_size_list(array.type)):  # fmt: skip
            break
        sizes = package("pyarrow.compute").list_value_length(array).unique().to_pylist()
        found += sizes if len(sizes) == 1 else [-1]  # -1: not the same in every row
        array = array.flatten()
    if (tuple(found[1:]) or (1,)) != feature.shape and rows:
        shown = ["different sizes" if size < 0 else size for size in found[1:]] or [1]
        raise LeRobotError(f"{path}: {feature.name} has the shape {shown} per frame, {list(feature.shape)} is expected "
                           f"({INFO}): the files are of different versions of the set, download it again")  # fmt: skip
    values = array.to_numpy(zero_copy_only=False)
    wanted = np.dtype(feature.dtype)
    if values.dtype.kind != wanted.kind and not np.can_cast(values.dtype, wanted):
        raise LeRobotError(f"{path}: {feature.name} holds {values.dtype}, {wanted} is expected ({INFO})")
    return values.astype(wanted).reshape((rows,) if feature.shape == (1,) else (rows, *feature.shape))


def _check_times(where: str, columns: Mapping[str, np.ndarray], fps: float) -> None:
    length = len(columns["frame_index"])
    for name in ("frame_index", "index"):
        if not np.array_equal(columns[name] - columns[name][0], np.arange(length)):
            raise LeRobotError(f"{where}: {name} does not count the frames; sort the rows, or download the set again")
    off = np.abs(columns["timestamp"].astype(np.float64) - columns["frame_index"] / fps)
    if off.max() > _TOLERANCE_S:
        raise LeRobotError(
            f"{where}: timestamps do not fit fps = {fps}: frame {int(off.argmax())} is {off.max():.4f} s off; mend fps "
            f"in {INFO}, or resample the episode"
        )


def _pictures(path: Path, key: str, rows: slice, shape: tuple[int, ...]) -> np.ndarray:
    """Images `[N, H, W, 3]` from encoded ones (PNG, JPEG) in the rows of a data file."""
    file = _opened(path)
    images, first = np.empty(shape, np.uint8), 0
    for group in range(file.num_row_groups):
        last = first + file.metadata.row_group(group).num_rows
        if last > rows.start and first < rows.stop:
            column = _read(path, lambda group=group: file.read_row_group(group, columns=[key])).column(0)  # type: ignore[misc]
            for place in range(max(first, rows.start), min(last, rows.stop)):
                images[place - rows.start] = _picture(f"{path}: {key}, row {place}", column[place - first], shape[1:])
        first = last
    return images


def _picture(where: str, cell: Any, pixels: tuple[int, ...]) -> np.ndarray:
    content = cell.as_py()
    encoded = content.get("bytes") if isinstance(content, dict) else content
    if not encoded:
        raise LeRobotError(f"{where} holds no image; the set was saved without embedding its images, export it again")
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            found = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise LeRobotError(f"{where} is not a complete image ({str(error)[:80]}); download the set again") from error
    if found.shape != pixels:
        raise LeRobotError(f"{where} is an image of {list(found.shape)}, {list(pixels)} is expected ({INFO})")
    return found


def _decoded(path: Path, start: float, shape: tuple[int, ...], fps: float) -> np.ndarray:
    """The frames `[N, H, W, 3]` of a video from the second `start` on, one every 1/fps."""
    av = package("av")
    images, found = np.empty(shape, np.uint8), 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            container.seek(int(max(0.0, start - 0.5 / fps) / stream.time_base), stream=stream)  # the key frame before
            for frame in container.decode(stream):
                place = (frame.time - start) * fps
                if place < -0.5:
                    continue
                if found == len(images):
                    break
                if abs(place - found) > _NEAR:
                    raise LeRobotError(f"{path}: a frame at {frame.time:.4f} s, one at {start + found / fps:.4f} s is "
                                       f"expected for fps = {fps}; download the video again")  # fmt: skip
                if (frame.height, frame.width) != shape[1:3]:
                    raise LeRobotError(f"{path} has frames of {frame.height} x {frame.width}, {shape[1]} x {shape[2]} "
                                       f"is expected ({INFO}): it is of another version, download again")  # fmt: skip
                images[found] = frame.to_ndarray(format="rgb24")
                found += 1
    except (av.FFmpegError, IndexError) as error:
        why = " ".join(str(error).split())[:80]
        raise LeRobotError(f"{path} cannot be decoded ({why}): download the video again") from error
    if found < len(images):
        raise LeRobotError(f"{path} ends after {found} of the {len(images)} frames from {start:.2f} s on that the data "
                           "has rows for; download the video again")  # fmt: skip
    return images

"""Episodes to a LeRobot data set of version 3.0: parquet files of rows, H.264 videos or PNG images, statistics."""

import contextlib
import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cso_jax.data.lerobot.layout import (
    DATA,
    EPISODES,
    INDICES,
    INFO,
    NUMBERS,
    PICTURES,
    STATS,
    TASKS,
    VERSION,
    VIDEO,
    Feature,
    LeRobotError,
    package,
)

_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_LOOKED_AT = 16  # images per episode that the statistics are made from
_MEGABYTE = 2**20

# Every second frame is a key frame, as in LeRobot's own videos: a random frame costs two to decode. No frame refers to
# a later one, so that times begin at 0. A crf of 18 is near what the eye can tell from the original.
_ENCODER = {"g": "2", "bf": "0", "crf": "18"}


@dataclasses.dataclass(frozen=True)
class Limits:
    """When a next file, a next chunk of files, begins; LeRobot's own numbers. An episode stays in one file."""

    data_bytes: int = 100 * _MEGABYTE
    video_bytes: int = 200 * _MEGABYTE
    files_per_chunk: int = 1000

    def after(self, chunk: int, file: int) -> tuple[int, int]:
        """The numbers of the next file."""
        return (chunk, file + 1) if file + 1 < self.files_per_chunk else (chunk + 1, 0)


class Writer:
    """Writes a set into an empty folder, episode by episode; `close` completes it.

    What it raises beside LeRobotError, for episodes that do not fit together, is OSError (a full disk).
    """

    def __init__(
        self, folder: Path, features: Mapping[str, Feature], *, fps: int, robot: str, limits: Limits | None = None
    ) -> None:
        self._folder, self._fps, self._robot, self._limits = folder, fps, robot, limits or Limits()
        indices = {name: Feature(name, dtype, (1,)) for name, dtype in INDICES.items()}
        self.features = {**features, **indices}
        self._data = _DataFile(folder, self.features, self._limits)
        self._videos = {name: _Video(folder, feature, fps, self._limits)
                        for name, feature in features.items() if feature.dtype == "video"}  # fmt: skip
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._frames = 0
        self._statistics = {name: _Statistics(feature) for name, feature in self.features.items()}

    def add(self, columns: Mapping[str, Any], sentence: str, facts: Mapping[str, Any]) -> None:
        """Write an episode: N values of every feature, of pictures `[N, H, W, 3]` uint8, and facts about all of it.

        `facts` are numbers and text that become columns of `meta/episodes`, the same ones for every episode.
        """
        number = len(self._rows)
        length = len(next(iter(columns.values())))
        task = self._tasks.setdefault(sentence, len(self._tasks))
        steps = np.arange(length)
        own = {
            "timestamp": (steps / self._fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, number),
            "index": self._frames + steps,
            "task_index": np.full(length, task),
        }
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": [sentence],
            "length": length,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        numeric, encoded = {}, {}
        for name, values in {**columns, **own}.items():
            # One camera at a time: these are the large ones.
            values = _fitting(self.features[name], np.asarray(values), length, number)
            self._statistics[name].add(values)
            if name in self._videos:
                row |= self._videos[name].add(values)
            elif self.features[name].dtype == "image":
                encoded[name] = [{"bytes": _png(image), "path": None} for image in values]
            else:
                numeric[name] = values
        chunk, file = self._data.add({**numeric, **encoded})
        self._rows.append({**row, "data/chunk_index": chunk, "data/file_index": file, **facts})
        self._frames += length

    def close(self) -> None:
        """Finish all files and write what is known of the whole."""
        for close in self._closers():
            close()
        arrow, parquet = package("pyarrow"), package("pyarrow.parquet")
        path = self._folder / EPISODES.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(arrow.Table.from_pylist(self._rows), path)
        parquet.write_table(_task_table(self._tasks), self._folder / TASKS)
        found = {name: statistics.result() for name, statistics in self._statistics.items()}
        _write_json(self._folder / STATS, found)
        _write_json(self._folder / INFO, self._info())

    def abandon(self) -> None:
        """Let go of what is open, after an error."""
        for close in self._closers():
            with contextlib.suppress(Exception):
                close()

    def _closers(self) -> list[Callable[[], None]]:
        return [self._data.close, *(video.close for video in self._videos.values())]

    def _info(self) -> dict[str, Any]:
        return {
            "codebase_version": VERSION,
            "robot_type": self._robot or None,
            "total_episodes": len(self._rows),
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": self._limits.files_per_chunk,
            "data_files_size_in_mb": max(1, self._limits.data_bytes // _MEGABYTE),
            "video_files_size_in_mb": max(1, self._limits.video_bytes // _MEGABYTE),
            "fps": self._fps,
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": DATA,
            "video_path": VIDEO if self._videos else None,
            "features": {name: _described(feature, self._fps) for name, feature in self.features.items()},
        }


class _DataFile:
    """The parquet files of rows, one row group per episode."""

    def __init__(self, folder: Path, features: Mapping[str, Feature], limits: Limits) -> None:
        arrow = package("pyarrow")
        stored = [feature for feature in features.values() if feature.dtype != "video"]
        self._schema = arrow.schema([(feature.name, _arrow_type(feature)) for feature in stored])
        self._folder, self._limits, self._place = folder, limits, (0, 0)
        self._writer: Any = None
        self._path = folder

    def add(self, columns: Mapping[str, Any]) -> tuple[int, int]:
        """Write an episode; the numbers of the chunk and the file that hold it."""
        arrow = package("pyarrow")
        if self._writer is not None and self._path.stat().st_size >= self._limits.data_bytes:
            self.close()
            self._place = self._limits.after(*self._place)
        if self._writer is None:
            self._path = self._folder / DATA.format(chunk_index=self._place[0], file_index=self._place[1])
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = package("pyarrow.parquet").ParquetWriter(self._path, self._schema)
        arrays = [_arrow_array(columns[field.name], field.type) for field in self._schema]
        self._writer.write_table(arrow.Table.from_arrays(arrays, schema=self._schema))
        return self._place

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


class _Video:
    """The videos of one camera."""

    def __init__(self, folder: Path, feature: Feature, fps: int, limits: Limits) -> None:
        height, width = feature.pixels[:2]
        if height % 2 or width % 2:
            raise LeRobotError(
                f"{feature.name} is {height} x {width}: video needs even sizes; --video=false stores PNG images"
            )
        self._folder, self._key, self._fps, self._limits, self._place = folder, feature.name, fps, limits, (0, 0)
        self._size = (height, width)
        self._container: Any = None
        self._stream: Any = None
        self._frames = 0
        self._path = folder

    def add(self, images: np.ndarray) -> dict[str, Any]:
        """Append an episode's images `[N, H, W, 3]`; where they are, as columns of `meta/episodes`."""
        av = package("av")
        try:
            if self._container is not None and self._path.stat().st_size >= self._limits.video_bytes:
                self.close()
                self._place = self._limits.after(*self._place)
            if self._container is None:
                self._open()
            first = self._frames
            for image in images:
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = self._frames, Fraction(1, self._fps)
                self._container.mux(self._stream.encode(frame))
                self._frames += 1
        except av.FFmpegError as error:
            raise OSError(getattr(error, "errno", None) or 0, str(error)) from error
        prefix = f"videos/{self._key}"
        return {
            f"{prefix}/chunk_index": self._place[0],
            f"{prefix}/file_index": self._place[1],
            f"{prefix}/from_timestamp": first / self._fps,
            f"{prefix}/to_timestamp": self._frames / self._fps,
        }

    def _open(self) -> None:
        place = {"chunk_index": self._place[0], "file_index": self._place[1]}
        self._path = self._folder / VIDEO.format(video_key=self._key, **place)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._container = package("av").open(str(self._path), "w")
        self._stream = self._container.add_stream("libx264", rate=self._fps, options=_ENCODER)
        self._stream.height, self._stream.width = self._size
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = Fraction(1, self._fps)
        self._frames = 0

    def close(self) -> None:
        container, self._container = self._container, None
        if container is not None:
            av = package("av")
            try:
                container.mux(self._stream.encode(None))
                container.close()
            except av.FFmpegError as error:
                raise OSError(getattr(error, "errno", None) or 0, str(error)) from error


class _Statistics:
    """Of a feature over all frames; of pictures over some, per colour, as numbers from 0 to 1."""

    def __init__(self, feature: Feature) -> None:
        self._picture = feature.dtype in PICTURES
        self._values: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        if not self._picture:
            self._values.append(values.reshape(len(values), -1))
            return
        some = values[:: -(-len(values) // _LOOKED_AT)].astype(np.float64) / 255.0
        means = [some.mean((1, 2)), (some**2).mean((1, 2)), some.min((1, 2)), some.max((1, 2))]
        self._values.append(np.stack(means, axis=1))

    def result(self) -> dict[str, Any]:
        values = np.concatenate(self._values).astype(np.float64)
        if self._picture:
            mean, square = values[:, 0].mean(0), values[:, 1].mean(0)
            deviation = np.sqrt(np.maximum(square - mean**2, 0.0))
            found = {"min": values[:, 2].min(0), "max": values[:, 3].max(0), "mean": mean, "std": deviation}
            # Images are channels first to LeRobot's policies: [3, 1, 1].
            return {**{name: value[:, None, None].tolist() for name, value in found.items()}, "count": [len(values)]}
        found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        found |= {name: np.quantile(values, share, axis=0) for name, share in _QUANTILES.items()}
        return {**{name: value.tolist() for name, value in found.items()}, "count": [len(values)]}


def _fitting(feature: Feature, values: np.ndarray, length: int, episode: int) -> np.ndarray:
    shape = (length, *(feature.pixels or (() if feature.shape == (1,) else feature.shape)))
    if values.shape != shape and values.size == length * feature.size and not feature.pixels:
        values = values.reshape(shape)
    if values.shape != shape:
        raise LeRobotError(
            f"episode {episode}: {feature.name} has the shape {list(values.shape)}, {list(shape)} is expected, as in "
            "the first episode: convert episodes of different shapes into sets of their own"
        )
    return values if feature.pixels else values.astype(feature.dtype, copy=False)


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _arrow_type(feature: Feature) -> Any:
    arrow = package("pyarrow")
    if feature.dtype == "image":
        return arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    kind = arrow.bool_() if feature.dtype == "bool" else getattr(arrow, feature.dtype)()
    if feature.shape == (1,):
        return kind
    if len(feature.shape) == 1:
        return arrow.list_(kind, feature.shape[0])
    for _ in feature.shape:
        kind = arrow.list_(kind)
    return kind


def _arrow_array(values: Any, kind: Any) -> Any:
    arrow = package("pyarrow")
    if not isinstance(values, np.ndarray) or values.ndim == 1:
        return arrow.array(values, type=kind)
    if values.ndim == 2:
        return arrow.FixedSizeListArray.from_arrays(arrow.array(values.reshape(-1)), type=kind)
    return arrow.array(values.tolist(), type=kind)


def _task_table(tasks: Mapping[str, int]) -> Any:
    """Sentences and their numbers, with the note that makes the sentence pandas' index, where LeRobot looks for it."""
    arrow = package("pyarrow")
    kinds = (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    described = [{"field_name": name, "name": name, "pandas_type": kind, "numpy_type": stored, "metadata": None}
                 for name, kind, stored in kinds]  # fmt: skip
    heading = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object",
               "metadata": {"encoding": "UTF-8"}}  # fmt: skip
    note = {"index_columns": ["task"], "column_indexes": [heading], "columns": described,
            "creator": {"library": "pyarrow", "version": arrow.__version__}, "pandas_version": "2.2.0"}  # fmt: skip
    columns = {"task_index": arrow.array(list(tasks.values()), arrow.int64()), "task": arrow.array(list(tasks))}
    return arrow.table(columns).replace_schema_metadata({"pandas": json.dumps(note)})


def _described(feature: Feature, fps: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"dtype": feature.dtype, "shape": list(feature.shape), "names": list(feature.names) or None}
    if feature.dtype in NUMBERS:
        return facts
    facts["names"] = ["height", "width", "channels"]
    if feature.dtype == "video":
        height, width, channels = feature.pixels
        facts["info"] = {
            "video.height": height,
            "video.width": width,
            "video.channels": channels,
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.fps": fps,
            "is_depth_map": False,
            "has_audio": False,
        }
    return facts


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")

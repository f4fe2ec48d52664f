"""Writes that survive a killed process: whole files replaced atomically, JSONL files appended line by line."""

import json
import math
import os
import threading
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

PathLike = str | os.PathLike[str]


def expanded(path: PathLike) -> Path:
    """`path` with a leading "~" or "~user" replaced by that home folder; as it is where no such home is known."""
    return Path(os.path.expanduser(path))


def step_folders(folder: PathLike) -> list[Path]:
    """The finished checkpoints `<step>` of a stage's folder, by step.

    What orbax is still writing, or had to leave when it was killed, is called `<step>.orbax-checkpoint-tmp...`.
    """
    folder = Path(folder)
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if path.name.isdecimal() and path.is_dir()), key=lambda path: int(path.name))


def to_plain(value: Any) -> Any:
    """Returns `value` as JSON types: NumPy and JAX scalars and arrays become numbers and lists, NaN and inf None."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype.kind not in "biuSU":
            array = array.astype(np.float64)  # bfloat16 and friends have no JSON form of their own
        return to_plain(array.tolist())
    raise TypeError(f"cannot store {type(value).__name__} as JSON: {value!r}")


def atomic_write_bytes(path: PathLike, data: bytes) -> None:
    """Replaces the file at `path` by `data`: a reader sees the old content or the new, never a part.

    Missing parent folders are made. Raises OSError where the folder cannot be written or the disk is full; the old
    content is then still in place.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def atomic_write_text(path: PathLike, text: str) -> None:
    """`atomic_write_bytes` of `text` in UTF-8."""
    atomic_write_bytes(path, text.encode("utf-8"))


def append_jsonl(path: PathLike, rows: Iterable[Mapping[str, Any]], *, sync: bool = True) -> None:
    """Appends one JSON line per row, all in one write.

    A half-written last line, left by a killed process, is cut off first. `sync` waits until the rows are on the disk
    (a few milliseconds); without it they survive a killed process, but not a power cut. Raises TypeError, before
    anything is written, for a value that has no JSON form.
    """
    data = "".join(_encode(row) + "\n" for row in rows).encode("utf-8")
    if not data:
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        _repair_tail(file)
        file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def read_jsonl(path: PathLike) -> list[dict[str, Any]]:
    """Returns the rows of a JSONL file, in order; a missing file has none.

    A last line that lacks its newline and does not parse is an interrupted write and is left out. Any other line that
    is not a JSON object is moved to `<name>.quarantine` beside the file, with a warning; the good rows are kept.
    """
    path = Path(path)
    if not path.exists():
        return []
    content = path.read_bytes()
    complete, newline, tail = content.rpartition(b"\n")
    rows: list[dict[str, Any]] = []
    good: list[bytes] = []
    bad: list[bytes] = []
    for line in complete.split(b"\n") if newline else []:
        row = _decode(line)
        if row is not None:
            rows.append(row)
            good.append(line)
        elif line.strip():
            bad.append(line)
    last = _decode(tail)
    if last is not None:
        rows.append(last)
    if bad:
        quarantine = path.with_name(path.name + ".quarantine")
        with open(quarantine, "ab") as file:
            file.write(b"\n".join(bad) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        atomic_write_bytes(path, b"".join(line + b"\n" for line in good) + tail)
        message = f"{path}: {len(bad)} unreadable line(s) moved to {quarantine}; the other {len(rows)} rows are kept"
        warnings.warn(message, stacklevel=2)
    return rows


def rewrite_jsonl(path: PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replaces the whole JSONL file atomically."""
    atomic_write_text(path, "".join(_encode(row) + "\n" for row in rows))


def _encode(row: Mapping[str, Any]) -> str:
    return json.dumps(to_plain(row), allow_nan=False)


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _repair_tail(file: Any) -> None:
    """Makes an open JSONL file end in a newline: an unfinished last line is cut off, a whole one is completed."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    tail = file.read().rpartition(b"\n")[2]
    if _decode(tail) is None:
        file.truncate(size - len(tail))
    else:
        file.write(b"\n")


def _sync_folder(folder: Path) -> None:
    # The rename itself reaches the disk only with the folder.
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # some file systems and platforms do not open folders
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)

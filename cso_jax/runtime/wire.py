"""Frames between robot and server: msgpack with NumPy arrays, as openpi and as vla-eval write it. No pickle, no JAX.

    openpi     {b"__ndarray__": True, b"data", b"dtype", b"shape"} and {b"__npgeneric__": True, b"data", b"dtype"}
    vla-eval   {"__ndarray__": True, "data", "dtype", "shape"} and {"__image__": True, "format", "data", "shape", ...}

A frame comes from the network and may be anything. It is walked once, without building a value, before msgpack sees it,
so that its depth and its number of items are known to be small; an array is made only where its shape, its type and the
length of its data agree. Whatever is wrong is a `WireError` of one line.
"""

import dataclasses
import io
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgpack
import numpy as np

Form = Literal["openpi", "vla-eval"]

_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")  # what NumPy itself reads as a type is far more than that
_MAX_AXES = 8
_TEXT_DTYPE = re.compile(r"[<>|=]?[US]\d{1,6}")
_IMAGE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class WireError(ValueError):
    """A frame that cannot be read, or a value that cannot be sent; the text is one line."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a frame may hold at most: bytes, containers within containers, items of all containers together."""

    bytes: int = 16 * 2**20
    depth: int = 8
    items: int = 4096


def pack(value: Any, form: Form = "openpi") -> bytes:
    """The frame of a value of dictionaries, lists, text, numbers and arrays. Raises WireError for any other."""
    try:
        frame: bytes = msgpack.packb(value, default=_PACKERS[form])
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise WireError(f"this value cannot be sent: {_line(error)}") from None
    return frame


def unpack(frame: bytes | str, form: Form = "openpi", bounds: Bounds | None = None) -> Any:
    """The value of a frame; arrays are read-only views of it, in the machine's byte order. Raises WireError."""
    if isinstance(frame, str):
        raise WireError("expected a binary frame with msgpack, found a text frame")
    bounds = bounds or Bounds()
    if len(frame) > bounds.bytes:
        raise WireError(f"expected at most {bounds.bytes} bytes, found {len(frame)}")
    _walk(frame, bounds)
    hook = _unpack_openpi if form == "openpi" else _unpack_vla_eval
    try:
        return msgpack.unpackb(frame, raw=False, strict_map_key=True, object_hook=lambda found: hook(found, bounds))
    except WireError:
        raise
    except Exception as error:  # msgpack has several types for it, and the hook meets any value at all
        raise WireError(f"expected msgpack, found a frame that cannot be read: {_line(error)}") from None


# How the bytes after a tag are read: a value of this many bytes, or a length of this many bytes and then so many.
_FIXED = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_FIXED |= {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}  # bytes and text
_COUNTED = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}  # lists and maps: items per entry


def _walk(frame: bytes, bounds: Bounds) -> None:
    """Read the frame's structure only. Raises WireError where it is not one whole value within the bounds."""
    place, items, open_counts = 0, 0, [1]
    while open_counts:
        if open_counts[-1] == 0:
            open_counts.pop()
            continue
        open_counts[-1] -= 1
        if place >= len(frame):
            raise WireError("expected msgpack, found a frame that ends too early")
        step, inside = _one(frame, place)
        place += step
        if inside is not None:
            items += inside
            if items > bounds.items or inside > len(frame) - place:  # an item is at least one byte
                raise WireError(f"expected at most {bounds.items} items, found a frame that announces more")
            open_counts.append(inside)
            if len(open_counts) > bounds.depth + 1:
                raise WireError(f"expected at most {bounds.depth} levels, found a frame that is nested deeper")
    if place > len(frame):
        raise WireError("expected msgpack, found a frame that ends too early")
    if place < len(frame):
        raise WireError(f"expected one value, found {len(frame) - place} bytes that do not belong to it")


def _one(frame: bytes, place: int) -> tuple[int, int | None]:
    """The bytes that the item at `place` takes itself, and how many items it holds (None: it is not a container)."""
    tag = frame[place]
    if tag <= 0x7F or tag >= 0xE0:
        return 1, None
    if tag <= 0x8F:
        return 1, 2 * (tag & 0x0F)
    if tag <= 0x9F:
        return 1, tag & 0x0F
    if tag <= 0xBF:
        return 1 + (tag & 0x1F), None
    if tag in _FIXED:
        return 1 + _FIXED[tag], None
    if tag in _SIZED:
        width = _SIZED[tag]
        return 1 + width + int.from_bytes(frame[place + 1 : place + 1 + width]), None
    if tag in _COUNTED:
        width, per_entry = _COUNTED[tag]
        return 1 + width, per_entry * int.from_bytes(frame[place + 1 : place + 1 + width])
    raise WireError(f"expected plain msgpack, found the tag 0x{tag:02x} (an extension type, or none at all)")


def _pack_openpi(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": _sendable(value), b"shape": value.shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": _sendable(value)}
    raise TypeError(f"no form for {type(value).__name__}")


def _pack_vla_eval(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        shape = list(value.shape)
        return {"__ndarray__": True, "data": value.tobytes(), "dtype": _sendable(value), "shape": shape}
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        return value.item()
    raise TypeError(f"no form for {type(value).__name__}")


_PACKERS: dict[str, Callable[[Any], Any]] = {"openpi": _pack_openpi, "vla-eval": _pack_vla_eval}


def _sendable(value: Any) -> str:
    text: str = value.dtype.str
    if not _DTYPE.fullmatch(text) and not (isinstance(value, np.generic) and _TEXT_DTYPE.fullmatch(text)):
        raise TypeError(f"no form for NumPy's type {value.dtype}")
    return text


def _unpack_openpi(found: dict[Any, Any], bounds: Bounds) -> Any:
    if b"__ndarray__" in found:
        _keys(found, b"__ndarray__", (b"data", b"dtype", b"shape"))
        return _array(found[b"data"], found[b"dtype"], found[b"shape"])
    if b"__npgeneric__" in found:
        _keys(found, b"__npgeneric__", (b"data", b"dtype"))
        return _scalar(found[b"data"], found[b"dtype"])
    return found


def _unpack_vla_eval(found: dict[Any, Any], bounds: Bounds) -> Any:
    if "__image__" in found:
        if found.get("format") == "raw":
            _keys(found, "__image__", ("format", "data", "dtype", "shape"))
            return _array(found["data"], found["dtype"], found["shape"])
        _keys(found, "__image__", ("format", "data", "shape"))
        return _image(found["format"], found["data"], found["shape"], bounds)
    if "__ndarray__" in found:
        _keys(found, "__ndarray__", ("data", "dtype", "shape"))
        return _array(found["data"], found["dtype"], found["shape"])
    return found


def _keys(found: Mapping[Any, Any], mark: str | bytes, keys: tuple[str | bytes, ...]) -> None:
    if found.keys() != {mark, *keys} or found[mark] is not True:
        raise WireError(f"an array: expected the keys {mark!r} (true) and {', '.join(map(repr, keys))}, found others")


def _array(data: Any, dtype: Any, shape: Any) -> np.ndarray:
    if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
        raise WireError(f"an array: expected numbers of 8 to 64 bits or booleans as its type, found {_short(dtype)}")
    shape = _shape(shape)
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if not isinstance(data, bytes) or len(data) != size:
        length = len(data) if isinstance(data, bytes) else type(data).__name__
        raise WireError(f"an array: shape {list(shape)} of {dtype} needs {size} bytes of data, found {length}")
    made: np.ndarray = np.ndarray(shape, kind, data)
    return made if kind.isnative else made.astype(kind.newbyteorder("="))


def _shape(shape: Any) -> tuple[int, ...]:
    plain = isinstance(shape, list) and len(shape) <= _MAX_AXES
    if not plain or not all(type(size) is int and 0 <= size < 2**31 for size in shape):
        raise WireError(f"an array: expected a shape of at most {_MAX_AXES} sizes, found {_short(shape)}")
    return tuple(shape)


def _scalar(data: Any, dtype: Any) -> Any:
    if isinstance(dtype, str) and _TEXT_DTYPE.fullmatch(dtype) and isinstance(data, (str, bytes)):
        return data  # a prompt that was taken out of an array of text
    if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype) or not isinstance(data, (bool, int, float)):
        raise WireError(f"a NumPy number: expected a number and its type, found {_short(data)} of {_short(dtype)}")
    with np.errstate(all="ignore"):
        return np.dtype(dtype).type(data)


def _image(form: Any, data: Any, shape: Any, bounds: Bounds) -> np.ndarray:
    """A PNG or JPEG file as uint8 `(H, W, C)`; its size is compared with the announced one before it is decoded."""
    if form not in ("png", "jpeg") or not isinstance(data, bytes):
        raise WireError(f"an image: expected png, jpeg or raw bytes, found the format {_short(form)}")
    shape = _shape(shape)
    if len(shape) != 3 or shape[2] not in _IMAGE_MODES or math.prod(shape) > bounds.bytes:
        raise WireError(f"an image: expected a shape (H, W, C) of at most {bounds.bytes} bytes, found {list(shape)}")
    try:
        from PIL import Image
    except ImportError:
        raise WireError("an image: png and jpeg need the package pillow here; install it, or send raw images") from None
    with Image.open(io.BytesIO(data), formats=[form.upper()]) as picture:
        if (picture.height, picture.width) != shape[:2] or picture.mode != _IMAGE_MODES[shape[2]]:
            size = f"{picture.height} x {picture.width}, {picture.mode}"
            raise WireError(f"an image: its shape says {list(shape)}, its file {size}")
        return np.asarray(picture)


def _line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:200]


def _short(value: Any) -> str:
    try:
        return repr(value)[:60]
    except Exception:  # an array of another frame within a shape
        return type(value).__name__

"""Reads PyTorch's `.pth` files without PyTorch, and without running anything that they hold.

A `.pth` file (PyTorch 1.6 and later) is a zip archive with one folder: `data.pkl`, a pickle in which every tensor
refers to a storage by name, and one uncompressed raw array per storage, `data/<name>`. A pickle can call any function
of the machine that reads it; here a few names are known (tensors, ordered dictionaries, sizes, devices) and a file
that asks for any other is refused before its pickle is run. Tensors are read one by one, when they are asked for: the
optimiser's moments of a training checkpoint cost nothing.
"""

import collections
import io
import math
import pickle
import pickletools
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np

_LARGEST_PICKLE = 64 * 2**20  # bytes; a policy's is below one MiB, and reading a pickle takes some 20 times its size

_STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class TorchFileError(ValueError):
    """The file cannot be read, or must not be; the message says what was found and what to do."""


class Tensor(NamedTuple):
    """A tensor of the file, not read yet. `offset` and `strides` count elements of its storage."""

    storage: str
    elements: int
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Storage(NamedTuple):
    name: str
    elements: int
    dtype: np.dtype


class _StorageType(NamedTuple):
    dtype: np.dtype


class TorchFile:
    """An open `.pth` file: `contents` is what was saved, with a `Tensor` in the place of every tensor.

    Use it in a `with` statement. Raises TorchFileError for a file that is no such archive, is damaged, is in the
    format before PyTorch 1.6, or whose pickle needs more than tensors and plain containers; OSError where it cannot be
    opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._archive = _open(self.path)
        try:
            self._folder = self._find_folder()
            self._order = self._byte_order()
            self.contents = self._load()
        except BaseException:
            self._archive.close()
            raise

    def __enter__(self) -> "TorchFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._archive.close()

    def array(self, tensor: Tensor) -> np.ndarray:
        """The values of a tensor, a new array in this machine's byte order.

        Raises TorchFileError where the storage is damaged (its checksum is verified), and for a tensor that repeats
        elements of its storage.
        """
        name = f"data/{tensor.storage}"
        if math.prod(tensor.shape) > tensor.elements:
            # A stride of 0 repeats: a few bytes could ask for any amount of memory.
            raise TorchFileError(
                f"{self.path}: a tensor of shape {tensor.shape} has only {tensor.elements} elements in its storage; "
                "save it with .contiguous()"
            )
        expected = tensor.elements * tensor.dtype.itemsize
        info = self._info(name)
        # Checked before it is read: a compressed record can grow a thousandfold.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != expected:
            raise TorchFileError(
                f"{self.path}: the record {name} has {info.file_size} bytes"
                f"{'' if info.compress_type == zipfile.ZIP_STORED else ', compressed'}; its tensors need {expected}, "
                "uncompressed. The file is damaged, or PyTorch did not write it"
            )
        values = np.frombuffer(self._read(info), tensor.dtype.newbyteorder(self._order))
        strides = tuple(stride * values.itemsize for stride in tensor.strides)
        view = np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides, writeable=False)
        return view.astype(tensor.dtype, order="C", copy=True)

    def _find_folder(self) -> str:
        found = [name for name in self._archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(found) != 1:
            raise TorchFileError(
                f"{self.path} is a zip archive but not of PyTorch: it should hold one FOLDER/data.pkl, it has "
                f"{len(found)}; a checkpoint is the .pth file itself, not an archive around it"
            )
        return found[0].removesuffix("data.pkl")

    def _byte_order(self) -> Literal["<", ">"]:
        name = f"{self._folder}byteorder"
        if name not in self._archive.namelist():
            return "<"  # written by versions that ran on little-endian machines only
        order = self._read(self._info("byteorder"))
        if order not in (b"little", b"big"):
            raise TorchFileError(f"{self.path}: byteorder must be little or big, the file says {order[:20]!r}")
        return "<" if order == b"little" else ">"

    def _load(self) -> Any:
        info = self._info("data.pkl")
        if info.file_size > _LARGEST_PICKLE:
            raise TorchFileError(
                f"{self.path}: data.pkl has {info.file_size} bytes; more than {_LARGEST_PICKLE} are not read, "
                "a policy's has less than a million"
            )
        data = self._read(info)
        try:
            _check_operations(data, self.path)
            return _Unpickler(data, self.path).load()
        except TorchFileError:
            raise
        except Exception as error:  # a damaged pickle raises almost any type
            raise TorchFileError(
                f"{self.path}: data.pkl cannot be read ({type(error).__name__}: {str(error)[:120]}); "
                "the file is damaged: fetch it again"
            ) from None

    def _info(self, name: str) -> zipfile.ZipInfo:
        try:
            return self._archive.getinfo(self._folder + name)
        except KeyError:
            raise TorchFileError(f"{self.path} lacks the record {name}: it is damaged, fetch it again") from None

    def _read(self, info: zipfile.ZipInfo) -> bytes:
        try:
            return self._archive.read(info)
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise TorchFileError(f"{self.path}: {info.filename} is damaged ({error}); fetch it again") from None


def _open(path: Path) -> zipfile.ZipFile:
    with open(path, "rb") as file:
        start = file.read(32)
    if not start.startswith(b"PK"):
        if _is_legacy(start):
            raise TorchFileError(
                f"{path} is in PyTorch's format before version 1.6; load it and torch.save it with a newer PyTorch"
            )
        raise TorchFileError(
            f"{path} is not a PyTorch checkpoint: a .pth file is a zip archive, this begins with {start[:8]!r}"
        )
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise TorchFileError(f"{path} is cut off or damaged ({error}); fetch it again") from None


def _is_legacy(start: bytes) -> bool:
    """Whether a file begins with the pickled magic number of the old format."""
    return start.startswith(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")


def _check_operations(data: bytes, path: Path) -> None:
    """Look at every operation of a pickle before it is run. Raises TorchFileError for names that are not known."""
    refused = set()
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in ("GLOBAL", "INST"):
            name = str(argument).replace(" ", ".")
            if name not in _KNOWN and not _is_storage_type(name):
                refused.add(name)
        elif operation.name in ("LONG_BINPUT", "PUT") and int(argument or 0) > len(data):
            # The table of remembered objects is as long as its largest number.
            raise TorchFileError(f"{path}: data.pkl numbers an object {argument}, which a sound file never does")
    if refused:
        raise TorchFileError(_refusal(path, sorted(refused)))


def _refusal(path: Path, names: list[str]) -> str:
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return (
        f"{path} asks for {shown}, which can run code; nothing of it was run. Only tensors, numbers, texts and "
        "containers are read: save the file again with nothing else in it, if you trust where it comes from"
    )


def _is_storage_type(name: str) -> bool:
    module, _, kind = name.rpartition(".")
    return module in ("torch", "torch.cuda", "torch.storage") and kind.endswith("Storage")


class _Unpickler(pickle.Unpickler):
    """Knows a few names only.

    What it hands out are bound methods, tuples and built-in types: a pickle can alter the attributes of other objects.
    """

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data))
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if _is_storage_type(full):
            if name not in _STORAGES:
                raise TorchFileError(f"{self._path} holds tensors of {full}; known are {', '.join(_STORAGES)}")
            return _StorageType(np.dtype(_STORAGES[name]))
        if full not in _KNOWN:  # a name that was put together on the stack
            raise TorchFileError(_refusal(self._path, [full]))
        known = _KNOWN[full]
        return getattr(self, known) if isinstance(known, str) else known

    def persistent_load(self, reference: Any) -> _Storage:
        kind, storage_type, name, _, elements = reference
        if kind != "storage" or not isinstance(storage_type, _StorageType) or not isinstance(name, str):
            raise TorchFileError(f"{self._path} refers to something that is no storage: {str(reference)[:100]}")
        return _Storage(name, _count(elements), storage_type.dtype)

    def _rebuild_tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
        """`offset` and `strides` count elements. Raises TorchFileError for a tensor that leaves its storage."""
        if not isinstance(storage, _Storage):
            raise TorchFileError(f"{self._path} holds a tensor without a storage")
        shape, strides = tuple(map(_count, shape)), tuple(map(_count, strides))
        last = _count(offset) + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if math.prod(shape) and last >= storage.elements:
            raise TorchFileError(
                f"{self._path}: a tensor of shape {shape} reaches beyond its storage {storage.name!r} of "
                f"{storage.elements} elements; the file is damaged: fetch it again"
            )
        return Tensor(storage.name, storage.elements, storage.dtype, offset, shape, strides)

    def _rebuild_parameter(self, data: Any, *_: Any) -> Any:
        return data

    def _device(self, *parts: Any) -> str:
        return ":".join(map(str, parts))


def _count(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise TorchFileError(f"expected a size of a tensor, found {value!r}: the file is damaged, fetch it again")
    return value


# What a pickle may name: built-in types, or the name of a method of `_Unpickler`.
_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": collections.OrderedDict,
    "torch.Size": tuple,
    "torch.device": "_device",
    "torch._utils._rebuild_tensor_v2": "_rebuild_tensor",
    "torch._utils._rebuild_parameter": "_rebuild_parameter",
}

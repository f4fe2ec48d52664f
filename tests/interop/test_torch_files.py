"""`.pth` files without PyTorch: what torch.save writes is read exactly, everything else is refused by name."""

import collections
import pickle
import re
import struct
import zipfile

import numpy as np
import pytest
from support import quest_reference as reference
from support.quest_reference import Call, View

from cso_jax.interop.torch_files import TorchFile, TorchFileError


def rewrite(path, change):
    """The archive with `change(name, data)` in the place of every record; None leaves it out."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in records.items():
            if (changed := change(name, data)) is not None:
                archive.writestr(name, changed)


def with_pickle(path, data):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    return path


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "int64"])
def test_values_of_every_kind(tmp_path, kind, order):
    values = np.arange(-6, 6).reshape(3, 4).astype(kind)
    path = reference.write_pth(tmp_path / "a.pth", {"x": values, "scalar": np.array(7, kind)}, order)
    with TorchFile(path) as file:
        x, scalar = file.array(file.contents["x"]), file.array(file.contents["scalar"])
    np.testing.assert_array_equal(x, values)
    assert x.dtype == np.dtype(kind) and x.flags.owndata and x.flags.writeable
    assert scalar.shape == () and scalar == 7


def test_views_share_a_storage(tmp_path):
    storage = np.arange(12, dtype=np.float32)
    contents = {
        "transposed": View(storage, 0, (4, 3), (1, 4)),
        "tail": View(storage, 10, (2,), (1,)),
        "empty": View(storage, 0, (0, 3), (3, 1)),
    }
    with TorchFile(reference.write_pth(tmp_path / "a.pth", contents)) as file:
        np.testing.assert_array_equal(file.array(file.contents["transposed"]), storage.reshape(3, 4).T)
        np.testing.assert_array_equal(file.array(file.contents["tail"]), [10, 11])
        assert file.array(file.contents["empty"]).shape == (0, 3)


def test_containers_keep_their_order_and_types(tmp_path):
    model = collections.OrderedDict([("b", np.zeros(2, np.float32)), ("a", np.ones(1, np.float32))])
    contents = {"model": model, "epoch": 3, "lr": 1e-4, "name": "ü", "flags": [True, None, (1, -2)], "size": Call(
        "torch", "Size", ([2, 3],)), "device": Call("torch", "device", ("cuda", 0)),
        "parameter": Call("torch._utils", "_rebuild_parameter", (np.ones(1, np.float32), True, {}))}  # fmt: skip
    with TorchFile(reference.write_pth(tmp_path / "a.pth", contents)) as file:
        read = file.contents
        assert list(read["model"]) == ["b", "a"] and isinstance(read["model"], collections.OrderedDict)
        assert file.array(read["parameter"]) == [1.0]
    del read["model"], read["parameter"]
    assert read == {
        "epoch": 3, "lr": 1e-4, "name": "ü", "flags": [True, None, (1, -2)], "size": (2, 3), "device": "cuda:0"
    }  # fmt: skip


def test_unread_storages_are_not_needed(tmp_path):
    path = reference.write_pth(tmp_path / "a.pth", {"x": np.ones(2, np.float32), "y": np.zeros(3, np.float32)})
    rewrite(path, lambda name, data: None if name.endswith("/data/1") else data)
    with TorchFile(path) as file:
        np.testing.assert_array_equal(file.array(file.contents["x"]), [1, 1])
        with pytest.raises(TorchFileError, match="lacks the record data/1"):
            file.array(file.contents["y"])


class Shell:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_code_is_refused_by_name_and_not_run(tmp_path, protocol):
    marker = tmp_path / "was_run"
    path = with_pickle(tmp_path / "a.pth", pickle.dumps({"model": Shell(marker)}, protocol=protocol))
    with pytest.raises(TorchFileError, match=r"(posix|nt)\.system, which can run code"):
        TorchFile(path)
    assert not marker.exists()


def test_all_refused_names_are_listed(tmp_path):
    contents = {"a": Call("builtins", "eval", ("1",)), "b": Call("numpy", "load", ("x",))}
    with pytest.raises(TorchFileError, match=r"asks for builtins\.eval, numpy\.load, which"):
        TorchFile(reference.write_pth(tmp_path / "a.pth", contents))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x80\x02X\x06\x00\x00\x00systemcposix\nsystem\n.", "asks for posix.system, which can run code"),
        # A name that is put together on the stack.
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "asks for posix.system, which can run code"),
        (b"\x80\x04\x8c\x0ctorch._utils\x8c\x1b_rebuild_tensor_v2.__call__\x93.",
         "asks for torch._utils._rebuild_tensor_v2.__call__, which can run code"),
        (b"(S'touch x'\niposix\nsystem\n.", "asks for posix.system, which can run code"),
        (b"\x80\x02\x82\x01.", "unregistered extension code 1"),
        (b"\x80\x02cbuiltins\ngetattr\n.", "asks for builtins.getattr, which can run code"),
        (b"\x80\x02ccollections\nOrderedDict.fromkeys\n.",
         "asks for collections.OrderedDict.fromkeys, which can run code"),
    ],
)  # fmt: skip
def test_other_ways_to_name_code(tmp_path, data, said):
    with pytest.raises(TorchFileError, match=re.escape(said)):
        TorchFile(with_pickle(tmp_path / "a.pth", data))


def test_a_huge_object_number_is_refused(tmp_path):
    data = b"\x80\x02}r" + struct.pack("<I", 2**31) + b"."
    with pytest.raises(TorchFileError, match="numbers an object 2147483648"):
        TorchFile(with_pickle(tmp_path / "a.pth", data))


def test_a_tensor_cannot_be_altered_after_its_check(tmp_path):
    """BUILD with a state would set the attributes of an ordinary object."""
    storages = []
    tensor = reference.pickled(np.zeros(2, np.float32), storages)
    state = reference.pickled((None, {"shape": (10**6,)}), storages)
    with pytest.raises(TorchFileError, match="cannot be read"):
        TorchFile(with_pickle(tmp_path / "a.pth", b"\x80\x02" + tensor + state + b"b."))


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (((5,), (1,), 0), "reaches beyond its storage"),
        (((2,), (1,), 3), "reaches beyond its storage"),
        (((2, 2), (3, 1), 0), "reaches beyond its storage"),
        (((2,), (-1,), 1), "expected a size of a tensor, found -1"),
        (((2,), (1,), -1), "expected a size of a tensor, found -1"),
        (((2.0,), (1,), 0), "expected a size of a tensor, found 2.0"),
        (((2, 2), (1,), 0), "cannot be read"),
    ],
)
def test_tensors_stay_in_their_storage(tmp_path, view, message):
    shape, strides, offset = view
    contents = {"x": View(np.zeros(4, np.float32), offset, shape, strides)}
    with pytest.raises(TorchFileError, match=message):
        TorchFile(reference.write_pth(tmp_path / "a.pth", contents))


def test_repeated_elements_are_refused(tmp_path):
    contents = {"x": View(np.zeros(4, np.float32), 0, (10**9, 4), (0, 1))}
    with (
        TorchFile(reference.write_pth(tmp_path / "a.pth", contents)) as file,
        pytest.raises(TorchFileError, match="contiguous"),
    ):
        file.array(file.contents["x"])


def test_unknown_storage_types_are_named(tmp_path):
    path = reference.write_pth(tmp_path / "a.pth", {"x": np.zeros(4, np.float32)})
    rewrite(path, lambda name, data: data.replace(b"FloatStorage", b"QUInt8Storage"))
    with pytest.raises(TorchFileError, match=r"tensors of torch\.QUInt8Storage; known are DoubleStorage"):
        TorchFile(path)


def test_records_have_the_size_of_their_storage(tmp_path):
    path = reference.write_pth(tmp_path / "a.pth", {"x": np.zeros(4, np.float32)})
    rewrite(path, lambda name, data: data[:-1] if name.endswith("/data/0") else data)
    with TorchFile(path) as file, pytest.raises(TorchFileError, match="has 15 bytes; its tensors need 16"):
        file.array(file.contents["x"])


def test_damaged_values_are_noticed(tmp_path):
    path = reference.write_pth(tmp_path / "a.pth", {"x": np.full(400, 3.25, np.float32)})
    data = bytearray(path.read_bytes())
    data[data.find(np.full(8, 3.25, np.float32).tobytes()) + 40] ^= 1
    path.write_bytes(data)
    with TorchFile(path) as file, pytest.raises(TorchFileError, match="is damaged"):
        file.array(file.contents["x"])


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_truncated_file(tmp_path, share):
    path = reference.write_pth(tmp_path / "a.pth", {"x": np.zeros(1000, np.float32)})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(TorchFileError, match="cut off or damaged"):
        TorchFile(path)


def test_truncated_pickle(tmp_path):
    path = reference.write_pth(tmp_path / "a.pth", {"x": np.zeros(10, np.float32), "y": 1})
    rewrite(path, lambda name, data: data[: len(data) // 2] if name.endswith("data.pkl") else data)
    with pytest.raises(TorchFileError, match=r"data\.pkl cannot be read"):
        TorchFile(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a PyTorch checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\n", "begins with b'version '"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2), "format before version 1.6"),
        (b"PK\x03\x04 and no more", "cut off or damaged"),
    ],
)
def test_other_files(tmp_path, data, message):
    path = tmp_path / "a.pth"
    path.write_bytes(data)
    with pytest.raises(TorchFileError, match=message):
        TorchFile(path)


def test_an_archive_around_a_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("model.pth", b"")
    with pytest.raises(TorchFileError, match="not an archive around it"):
        TorchFile(tmp_path / "a.pth")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        TorchFile(tmp_path / "none.pth")

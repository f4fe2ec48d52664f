"""Frames: what goes in comes out, openpi's and vla-eval's bytes are read, and nothing else than WireError happens."""

import random
import resource

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import served

from cso_jax.runtime.requests import Reading, Refusal, read_request
from cso_jax.runtime.wire import Bounds, WireError, pack, unpack

FORMS = ("openpi", "vla-eval")
ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.zeros((0, 3), np.float64),
    np.asarray(3, np.int8),
    np.asarray([True, False]),
    np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    np.asarray([1, 2], ">i4"),
    np.asarray([1.5], np.float16),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_arrays_survive(array, form):
    found = unpack(pack({"a": array, "deep": [{"b": array}]}, form), form)
    for one in (found["a"], found["deep"][0]["b"]):
        assert one.dtype == array.dtype.newbyteorder("=") and one.shape == array.shape
        np.testing.assert_array_equal(one, array)


def test_the_bytes_of_openpi_by_hand():
    """As the package openpi-client 0.1.2 writes them."""
    theirs = msgpack.packb(
        {
            "state": {b"__ndarray__": True, b"data": b"\0\0\x80?", b"dtype": "<f4", b"shape": (1,)},
            "n": {b"__npgeneric__": True, b"data": 7, b"dtype": "<i8"},
            "prompt": {b"__npgeneric__": True, b"data": "go", b"dtype": "<U2"},
        }
    )
    found = unpack(theirs)
    assert found["state"].tolist() == [1.0] and found["n"] == 7 and found["n"].dtype == np.int64
    assert found["prompt"] == "go"
    assert pack({"state": np.ones(1, np.float32)}) == msgpack.packb(
        {"state": {b"__ndarray__": True, b"data": b"\0\0\x80?", b"dtype": "<f4", b"shape": (1,)}}
    )


@pytest.mark.parametrize("form", ["raw", "png"])
def test_the_images_of_vla_eval(form):
    Image = pytest.importorskip("PIL.Image")
    picture = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
    sent = {"__image__": True, "format": form, "data": picture.tobytes(), "shape": [5, 7, 3]}
    if form == "raw":
        sent["dtype"] = "|u1"
    else:
        import io

        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="PNG")
        sent["data"] = file.getvalue()
    np.testing.assert_array_equal(unpack(msgpack.packb({"i": sent}), "vla-eval")["i"], picture)
    with pytest.raises(WireError, match=r"an (image|array)"):
        unpack(msgpack.packb(sent | {"shape": [5, 8, 3]}), "vla-eval")
    with pytest.raises(WireError, match=r"an (image|array)"):
        unpack(msgpack.packb(sent | {"shape": [2**30, 2**30, 3]}), "vla-eval")


def _array(**changed):
    fields = {"data": b"\0" * 8, "dtype": "<f4", "shape": [2]} | changed
    return msgpack.packb({b"__ndarray__": True} | {key.encode(): value for key, value in fields.items()})


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        ("text", "text frame"),
        (b"", "ends too early"),
        (b"\x01\x01", "do not belong"),
        (b"\xc1", "0xc1"),
        (msgpack.packb(msgpack.ExtType(1, b"x")), "extension type"),
        (msgpack.packb(msgpack.Timestamp(0)), "extension type"),
        (b"\x91" * 50 + b"\x01", "nested deeper"),
        (b"\xdd\xff\xff\xff\xff", "announces more"),
        (b"\xdf\xff\xff\xff\xff", "announces more"),
        (b"\xdc\x20\x00" + b"\x80" * 0x2000, "announces more"),
        (b"\xc6\xff\xff\xff\xff", "ends too early"),
        (b"\x81\x01\x01", "cannot be read"),
        (b"\x81\x90\x01", "cannot be read"),
        (b"\xa1\xff", "cannot be read"),
        (b"\xa0" * 2**20, "at most"),
        (_array(shape=[2**40, 2**40]), "a shape"),
        (_array(shape=[3]), "needs 12 bytes of data, found 8"),
        (_array(shape=[-1]), "a shape"),
        (_array(shape=[True, 2]), "a shape"),
        (_array(shape=[1] * 64), "a shape"),
        (_array(shape=2), "a shape"),
        (_array(dtype="|O"), "as its type"),
        (_array(dtype="<c8"), "as its type"),
        (_array(dtype="|V8"), "as its type"),
        (_array(dtype="f4,f4"), "as its type"),
        (_array(dtype="<f4" * 1000), "as its type"),
        (_array(dtype=1), "as its type"),
        (_array(data="text"), "found str"),
        (_array(extra=1), "expected the keys"),
        (msgpack.packb({b"__ndarray__": 1, b"data": b"", b"dtype": "<f4", b"shape": [0]}), "expected the keys"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}), "cannot be read"),
        (msgpack.packb({b"__npgeneric__": True, b"data": [1], b"dtype": "|u1"}), "a NumPy number"),
        (msgpack.packb({b"__npgeneric__": True, b"data": 1, b"dtype": "<M8[s]"}), "a NumPy number"),
    ],
)
def test_a_bad_frame_is_one_readable_line(frame, says):
    with pytest.raises(WireError, match=says) as error:
        unpack(frame, bounds=Bounds(bytes=2**19))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    "value", [np.asarray([None]), np.asarray([1j]), np.zeros(1, "f4,f4"), object(), 2**70, {1, 2}, b"x" and np.str_]
)
@pytest.mark.parametrize("form", FORMS)
def test_what_has_no_form_is_not_sent(value, form):
    with pytest.raises(WireError, match="cannot be sent"):
        pack({"a": value}, form)


def test_a_loop_is_not_sent():
    loop: list = []
    loop.append(loop)
    with pytest.raises(WireError, match="cannot be sent"):
        pack(loop)


BOUNDS = Bounds(bytes=4096)
_PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8)
_PLAIN |= st.binary(max_size=16)
_KEYS = st.sampled_from(["a", "data", "shape", "dtype", "format", "__ndarray__", "__image__", b"data", b"shape"])
_KEYS |= st.sampled_from([b"dtype", b"__ndarray__", b"__npgeneric__"])
_VALUES = st.sampled_from(["<f4", "|O", "png", "jpeg", "raw", True, [1], [2, 2], [0], b"", b"\0" * 4])
_TREES = st.recursive(
    _PLAIN | _VALUES,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(_KEYS, inner | _VALUES, max_size=5),
    max_leaves=20,
)
_FRAMES = st.binary(max_size=200) | _TREES.map(lambda tree: msgpack.packb(tree))


def _quietly(frame: bytes) -> None:
    for form in FORMS:
        try:
            unpack(frame, form, BOUNDS)
        except WireError as error:
            assert "\n" not in str(error)


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(_FRAMES, st.integers(0, 10**6), st.integers(0, 255))
def test_any_frame_is_read_or_refused(frame, place, byte):
    _quietly(frame)
    if frame:
        place %= len(frame)
        _quietly(frame[:place] + bytes([byte]) + frame[place + 1 :])
        _quietly(frame[:place])


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(st.dictionaries(st.text(max_size=8), _PLAIN, max_size=8))
def test_what_is_packed_is_unpacked(tree):
    if {"__ndarray__", "__image__"} & tree.keys():
        return
    for form in FORMS:
        assert repr(unpack(pack(tree, form), form)) == repr(tree)


def _mutated(draw: random.Random, seeds: list[bytes]) -> bytes:
    frame = bytearray(draw.choice(seeds))
    for _ in range(draw.randrange(1, 6)):
        what, place = draw.randrange(4), draw.randrange(len(frame))
        if what == 0:
            frame[place] = draw.randrange(256)
        elif what == 1:
            del frame[place : place + draw.randrange(1, 9)]
        elif what == 2:
            frame[place:place] = draw.randbytes(draw.randrange(1, 9))
        else:
            frame[place : place + 5] = bytes([draw.choice([0xC6, 0xDB, 0xDD, 0xDF])]) + b"\xff\xff\xff\xff"
        frame = frame or bytearray(1)
    return bytes(frame)


@pytest.mark.parametrize("count", [5_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_mutated_frames_are_read_or_refused_in_bounded_memory(count):
    seeds = [pack({"a": array, "task": "go", "n": [1, 2.5, None]}, form) for array in ARRAYS for form in FORMS]
    seeds += [pack({"a": [{"b": [np.float32(1), np.int8(2)]}]})]
    draw = random.Random(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        _quietly(_mutated(draw, seeds) if number % 2 else draw.randbytes(draw.randrange(40)))
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kb < 100_000


def test_mutated_requests_are_read_or_refused():
    """The whole way of a request, decoded and checked against a manifest: a Refusal and nothing else."""
    of = served.manifest(history=2)
    request = served.observation() | {"prompt": "task0", "request_id": 3, "deadline_ms": 5.0, "reset": False}
    seeds = [pack(request), pack({"images": {"camera": request["camera"]}, "joints": request["joints"], "episode": 1})]
    draw = random.Random(1)
    for number in range(5_000):
        try:
            read_request(unpack(_mutated(draw, seeds)), of, Reading(channels_first=number % 2 == 0))
        except (WireError, Refusal) as error:
            assert not isinstance(error, Refusal) or "\n" not in error.line()

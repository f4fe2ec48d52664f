"""Files survive interrupted writes."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from cso_jax.files import append_jsonl, atomic_write_bytes, atomic_write_text, read_jsonl, rewrite_jsonl, to_plain


def test_atomic_write_replaces_and_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "new" / "a.txt"
    atomic_write_text(path, "one")
    atomic_write_text(path, "zwölf")
    assert path.read_text("utf-8") == "zwölf"
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_failed_replacement_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    atomic_write_bytes(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_jsonl_round_trip(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_jsonl(path) == []
    append_jsonl(path, [{"a": 1}, {"b": [1.5, None]}])
    append_jsonl(path, [])
    append_jsonl(path, [{"c": "ä\nö"}])
    assert read_jsonl(path) == [{"a": 1}, {"b": [1.5, None]}, {"c": "ä\nö"}]
    rewrite_jsonl(path, [{"d": 2}])
    assert read_jsonl(path) == [{"d": 2}]


def test_a_torn_last_line_is_left_out_and_cut_off_by_the_next_append(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2, "b"')
    assert read_jsonl(path) == [{"a": 1}]
    append_jsonl(path, [{"a": 3}])
    assert read_jsonl(path) == [{"a": 1}, {"a": 3}]
    assert not (tmp_path / "rows.jsonl.quarantine").exists()


def test_a_whole_last_line_without_newline_is_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}')
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]
    append_jsonl(path, [{"a": 3}])
    assert [row["a"] for row in read_jsonl(path)] == [1, 2, 3]


def test_corrupt_middle_lines_are_quarantined(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": \n[1, 2]\n\n{"a": 2}\n')
    with pytest.warns(UserWarning, match="2 unreadable"):
        assert read_jsonl(path) == [{"a": 1}, {"a": 2}]
    assert (tmp_path / "rows.jsonl.quarantine").read_text() == '{"a": \n[1, 2]\n'
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'


def test_to_plain():
    values = {"f": np.float32(0.5), "i": np.int64(3), "n": float("nan"), "j": jnp.float32(2), "b": np.bool_(True)}
    assert to_plain(values) == {"f": 0.5, "i": 3, "n": None, "j": 2.0, "b": True}
    assert to_plain(jnp.asarray([1, float("inf")], jnp.bfloat16)) == [1.0, None]
    assert json.dumps(to_plain((1, np.arange(2)))) == "[1, [0, 1]]"
    with pytest.raises(TypeError, match="object"):
        to_plain(object())


def test_nothing_is_written_when_a_row_has_no_json_form(tmp_path):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(TypeError, match="object"):
        append_jsonl(path, [{"a": 1}, {"a": object()}])
    assert not path.exists()

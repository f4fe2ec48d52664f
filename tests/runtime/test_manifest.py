"""The manifest: a strict round trip, and one readable line for everything else."""

import dataclasses
import json

import numpy as np
import pytest
from support import served

from cso_jax.runtime.manifest import Action, Entry, Manifest

PLAIN = served.manifest().to_plain()


def _changed(path: str, value) -> str:
    plain = json.loads(json.dumps(PLAIN))
    *way, last = path.split(".")
    place = plain
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    if value is None and last in place:
        del place[last]
    else:
        place[last] = value
    return json.dumps(plain)


@pytest.mark.parametrize("changed", [{}, {"limits": None}, {"history": 3}])
def test_a_manifest_survives_its_json(changed):
    made = served.manifest(**changed)
    assert Manifest.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("extra", 1, "unknown key 'extra'"),
        ("stage", None, "key 'stage'"),
        ("action.extra", 1, "unknown key 'extra'"),
        ("observation.0.dtype", None, "key 'dtype'"),
        ("history", "2", "manifest.history: expected a whole number, found '2'"),
        ("history", True, "a whole number"),
        ("history", 0, "at least 1"),
        ("action.low", [0.0], "expected 7 values"),
        ("action.execution_horizon", 17, "1 to chunk_length 16"),
        ("action.rate_hz", "fast", "a finite number"),
        ("observation.0.shape", [3, 8, 10], "(H, W, 3)"),
        ("observation.1.dtype", "uint8", "float32"),
        ("observation.1.name", "camera", "'camera' twice"),
        ("observation.1.name", "task", "reserved"),
        ("sampling", {"temperature": 1.0}, "top_k"),
        ("tasks", [], "at least one task"),
        ("limits.max_step", [0.1] * 5, "expected 6 values"),
        ("limits.max_step", [0.0] * 6, "above 0"),
        ("files", {"a": 1}, "files.a: expected text"),
        ("version", 2, "update cso_jax"),
        ("version", 0, "export the policy again"),
        ("format", "other", "cso_jax.export"),
    ],
)
def test_anything_else_is_one_readable_line(path, value, says):
    with pytest.raises(ValueError) as error:
        Manifest.from_json(_changed(path, value))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"format": NaN}', "[" * 100000])
def test_text_that_is_no_manifest_is_refused(text):
    with pytest.raises(ValueError, match="manifest: expected"):
        Manifest.from_json(text)


def test_numpy_values_become_plain_ones():
    entry = Entry("state", "lowdim", np.asarray([7]), "float32")
    assert entry == Entry("state", "lowdim", (7,), "float32") and type(entry.shape[0]) is int
    action = dataclasses.replace(served.manifest().action, low=np.full(7, -3, np.float32))
    assert isinstance(action, Action) and action.low == (-3.0,) * 7


def test_a_number_that_json_has_not_is_refused():
    with pytest.raises(ValueError, match="finite"):
        dataclasses.replace(served.manifest().action, rate_hz=float("nan"))
    with pytest.raises(ValueError, match="plain JSON"):
        served.manifest(provenance={"loss": float("nan")})


def test_a_task_is_found_by_name_or_sentence_only():
    made = served.manifest()
    assert made.task_index("task1") == made.task_index("do thing 1") == 1
    with pytest.raises(ValueError, match=r"task0 .'do thing 0'.; task1"):
        made.task_index("Do thing 1")

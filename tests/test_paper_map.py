"""docs/paper_map.md: no row is left out, and what the rows name is there, with the defaults that they state."""

import ast
import functools
import re
from pathlib import Path

import pytest

from cso_jax import config as configs
from cso_jax import defaults

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "paper_map.md"
COLUMNS = ["paper", "what it says", "code", "test", "config", "state"]
_NAMED = re.compile(r"\[`([^`]+)`\]\(\.\./([^)]+)\)")  # of code and tests: a link that shows what it leads to


def _rows() -> list[dict[str, str]]:
    rows = []
    for line in PAGE.read_text().splitlines():
        if not line.startswith("|"):
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells != COLUMNS and not set("".join(cells)) <= {"-"}:
            assert len(cells) == len(COLUMNS), line
            rows.append(dict(zip(COLUMNS, cells, strict=True)))
    return rows


ROWS = _rows()
CODE = sorted({named for row in ROWS for named in _NAMED.findall(row["code"])})
TESTS = sorted({named for row in ROWS for named in _NAMED.findall(row["test"])})
VALUES = sorted({text for row in ROWS for text in re.findall(r"`([^`]+)`", row["config"])})
OPEN = ("not implemented", "nothing to implement")


def _file_of(module: str) -> str:
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if (ROOT / path).is_dir() else f"{path}.py"


@functools.cache
def _names(path: Path) -> set[str]:
    """What a module defines, methods and fields as `Class.name`; nothing is imported."""
    return _defined(ast.parse(path.read_text()).body, "")


def _defined(body: list[ast.stmt], prefix: str) -> set[str]:
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                found |= _defined(node.body, f"{prefix}{node.name}.")
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {prefix + target.id for target in targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize(("shown", "linked"), CODE, ids=[shown for shown, _ in CODE])
def test_code_is_there(shown, linked):
    module, _, name = shown.partition(":")
    path = module if "/" in module else _file_of(module)
    assert linked == path, "the link leads elsewhere"
    assert (ROOT / path).is_file()
    assert not name or name in _names(ROOT / path), f"{path} defines no {name}"


@pytest.mark.parametrize(("shown", "linked"), TESTS, ids=[shown for shown, _ in TESTS])
def test_tests_are_there(shown, linked):
    path, _, name = shown.partition("::")
    assert linked == path, "the link leads elsewhere"
    assert (ROOT / path).is_file()
    assert name.startswith("test_") and name in _names(ROOT / path), f"{path} has no {name}"


@pytest.mark.parametrize("text", VALUES)
def test_values_are_the_defaults(text):
    """`libero: section.name = value` holds for LIBERO, without the prefix for both or for MetaWorld alone."""
    benchmark, _, assignment = text.rpartition(": ")
    key, _, value = assignment.partition(" = ")
    known = configs.flatten(getattr(defaults, benchmark or "metaworld")())
    assert key in known, f"there is no config.{key}"
    assert known[key] == ast.literal_eval(value)


def test_every_cell_is_filled():
    for row in ROWS:
        assert all(row.values()), row
        if not row["state"].startswith(OPEN):
            assert row["code"] != "-", row["paper"]
            assert row["test"] != "-" or "not implemented" in row["state"], row["paper"]
        for column in ("code", "test"):
            assert row[column] == "-" or not _NAMED.sub("", row[column]).strip(", "), (row["paper"], column)


def test_no_row_is_left_out():
    wanted = [f"Eq. {n}" for n in range(1, 10)] + [f"Table {n}" for n in range(1, 11)]
    wanted += [f"Figure {n}" for n in range(1, 5)] + [f"D.{n}" for n in range(1, 8)]
    wanted += ["Algorithm 1", "Appendix A", "B.1", "B.2", "Appendix C", "E", "E.1", "E.2", "E.3", "F", "G"]
    wanted += [f"Section {n}" for n in ("3.1", "3.2", "4.1", "4.2", "5.1", "5.4", "5.5", "6.1")]
    places = [row["paper"].strip("*") for row in ROWS]
    assert len(set(places)) == len(places), "a place stands twice"
    assert [place for place in wanted if not any(re.match(re.escape(place) + "([, ]|$)", one) for one in places)] == []

"""docs/architecture.md: every module has a layer, and none imports from a layer above its own."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cso_jax"
PAGE = ROOT / "docs" / "architecture.md"
_MODULE = re.compile(r"cso_jax(\.\w+)+")
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def _layers() -> dict[str, int]:
    """The layer of every path in the page's table, relative to the package; folders without their slash."""
    found: dict[str, int] = {}
    for number, places in re.findall(r"^\| (\d+) \w+ \| ([^|]+) \|", PAGE.read_text(), flags=re.MULTILINE):
        found |= dict.fromkeys((place.rstrip("/") for place in re.findall(r"`([^`]+)`", places)), int(number))
    return found


LAYERS = _layers()


def _layer(path: Path) -> int | None:
    inside = path.relative_to(PACKAGE)
    return next((LAYERS[str(place)] for place in (inside, *inside.parents) if str(place) in LAYERS), None)


def _file(dotted: str) -> Path | None:
    """The file of a module of this package; None for a name inside one, and for the package itself."""
    path = ROOT.joinpath(*dotted.split("."))
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return found if found.is_file() and found != PACKAGE / "__init__.py" else None


def _imports(path: Path) -> set[Path]:
    dotted: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            dotted |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{name.name}" for name in node.names}
            inner = {name for name in names if name.startswith("cso_jax.") and _file(name)}
            dotted |= inner if len(inner) == len(names) else inner | {node.module}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE.fullmatch(node.value):
            dotted.add(node.value)  # a registry's entry is an import too
    return {found for name in dotted if name.split(".")[0] == "cso_jax" and (found := _file(name))}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    own = _layer(path)
    assert own is not None, "the table of docs/architecture.md has no layer for it"
    above = {str(found.relative_to(PACKAGE)) for found in _imports(path) if (_layer(found) or 0) > own}
    assert not above


def test_no_module_needs_itself():
    """Imports within functions and registries' entries count."""
    graph = {path: _imports(path) - {path} for path in MODULES}
    assert sum(map(len, graph.values())) > len(MODULES)
    done: set[Path] = set()

    def visit(path: Path, way: tuple[Path, ...]) -> None:
        assert path not in way, " -> ".join(str(step.relative_to(PACKAGE)) for step in (*way, path))
        if path not in done:
            for below in graph.get(path, ()):
                visit(below, (*way, path))
            done.add(path)

    for path in MODULES:
        visit(path, ())

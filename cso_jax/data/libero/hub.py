"""LIBERO's official demonstrations from the Hugging Face hub: sizes first, resumable, checked at the end."""

import importlib
import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

from cso_jax import telemetry
from cso_jax.data.store import StoreError
from cso_jax.envs.libero.files import ALIASES, SUITES

REPOSITORY = "yifengzhu-hf/LIBERO-datasets"
"""Where LIBERO's own download script takes the files from, one folder per suite."""

# The hub has no folder "libero_100": the original archive of that name held these two.
_SETS = {"libero_100": ("libero_10", "libero_90"), "all": SUITES}

_SPARE = 1e9  # bytes of disk to leave free


def suites_of(name: str) -> tuple[str, ...]:
    """The hub's folders for a suite, an alias ("libero_long"), "libero_100" or "all". Raises StoreError otherwise."""
    suite = ALIASES.get(name, name)
    chosen = _SETS.get(suite, (suite,))
    if not set(chosen) <= set(SUITES):
        raise StoreError(f"no suite {name!r}; there are {', '.join((*SUITES, *ALIASES, *_SETS))}")
    return chosen


def listing(name: str, *, revision: str = "main") -> dict[str, int]:
    """The files of a suite on the hub and their sizes in bytes, `{"libero_object/<task>_demo.hdf5": 700_000_000}`.

    Raises StoreError without the package huggingface_hub, without a network, or for an unknown suite or revision.
    """
    api = _hub().HfApi()
    sizes: dict[str, int] = {}
    for suite in suites_of(name):
        try:
            tree = list(api.list_repo_tree(REPOSITORY, suite, recursive=True, revision=revision, repo_type="dataset"))
        except Exception as error:  # the hub's exceptions depend on its version and on its HTTP library
            raise StoreError(f"cannot list {suite} of {REPOSITORY} on Hugging Face: {_first_line(error)}") from error
        sizes |= {entry.path: entry.size for entry in tree if str(entry.path).endswith(".hdf5")}
    if not sizes:
        raise StoreError(f"{REPOSITORY} at revision {revision} holds no HDF5 files of {name}")
    return sizes


def missing(sizes: dict[str, int], destination: Path) -> dict[str, int]:
    """Those files that `destination` does not hold in full."""
    return {name: size for name, size in sizes.items() if not _complete(destination / name, size)}


def check_space(wanted: int, destination: Path) -> None:
    """Raise StoreError if `wanted` bytes do not fit on the disk of `destination`."""
    existing = next(folder for folder in (destination, *destination.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if wanted + _SPARE > free:
        raise StoreError(f"{wanted / 1e9:.1f} GB are to be fetched, but {existing} has {free / 1e9:.1f} GB free")


def fetch(sizes: dict[str, int], destination: Path, *, revision: str = "main") -> None:
    """Download the files of `sizes` into `destination`, each under its name on the hub.

    What an interrupted download left is continued. Raises StoreError, after which the same call goes on.
    """
    hub = _hub()
    for name, size in telemetry.progress(sizes.items(), "download", unit="file"):
        try:
            hub.hf_hub_download(REPOSITORY, name, repo_type="dataset", revision=revision, local_dir=str(destination))
        except Exception as error:  # as in `listing`
            raise StoreError(
                f"the download of {name} failed: {_first_line(error)}; the same command goes on where it stopped"
            ) from error
        if not _complete(destination / name, size):
            raise StoreError(f"{destination / name} has not the {size} bytes that the hub names: delete it, try again")


def _complete(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _hub() -> ModuleType:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise StoreError("the download needs the package huggingface_hub: pip install huggingface_hub")
    return importlib.import_module("huggingface_hub")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0][:200]}"

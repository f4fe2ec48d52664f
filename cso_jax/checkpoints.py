"""Orbax checkpoints of one stage: atomic, verified on the way in, and never deleted because they failed to load."""

import errno
import os
import shutil
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from cso_jax import telemetry

# Errors of the machine, not of the checkpoint: nothing is wrong with what is on disk.
_PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}

# orbax looks for its own files with glob patterns made from the whole path, and reads "x:/" as a remote store.
_MISREAD = frozenset("[]*?\\:")


class CheckpointError(RuntimeError):
    """No checkpoint could be read, or the one asked for does not fit; the message says which and why."""


class Checkpoints:
    """The checkpoints of one stage, `directory/<step>`; the newest `keep` are kept.

    What is stored is a pytree of arrays plus a small JSON dictionary. Writing goes through orbax's temporary folder
    and rename, so a killed process leaves either the old set or the new one. The first save is read back at once.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2):
        self.directory = Path(directory).absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._keep = keep
        self._alias = _plain_alias(self, self.directory) if _MISREAD & set(str(self.directory)) else self.directory
        self._proven = False
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self._alias,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self._keep,
                create=False,
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,
                multiprocessing_options=_on_its_own(),
            ),
        )

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, step: int, tree: Any, meta: dict | None = None) -> None:
        """Write `tree` as `step`; a finished checkpoint of that step is left as it is. Of several processes one writes.

        Raises CheckpointError if the first one that is written here does not read back as it was: better now than
        after hours of training.
        """
        if step in self._manager.all_steps() or jax.process_index() != 0:
            return
        self._manager.save(
            step, args=ocp.args.Composite(tree=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta or {}))
        )
        self._manager.wait_until_finished()
        if not self._proven:
            self._prove(step, tree)
            self._proven = True

    def _prove(self, step: int, tree: Any) -> None:
        place = self.directory / str(step)
        try:
            found, _ = self._read(step)
        except MemoryError:
            raise
        except Exception as error:  # as in restore_latest
            raise CheckpointError(
                f"{place} was written and cannot be read back ({_first_line(error)[:120]}); use another --workdir, on "
                "another file system"
            ) from error
        written, read = _leaves(tree), _leaves(found)
        same = written.keys() == read.keys() and all(_same(value, read[name]) for name, value in written.items())
        if not same:
            raise CheckpointError(f"{place} is not read back as it was written; use another --workdir, on another disk")

    def restore_latest(self, like: Any) -> tuple[int, Any, dict] | None:
        """The newest readable checkpoint as (step, tree, meta), or None where the stage has none.

        One that cannot be read is moved to `quarantine/` beside its stage and the one before it is tried. Raises
        CheckpointError when a readable checkpoint holds another architecture than `like`, naming what differs.
        """
        for step in reversed(self.steps()):
            try:
                found = self._read(step)
            except MemoryError:
                raise
            except Exception as error:  # orbax raises many types for a damaged checkpoint
                if isinstance(error, OSError) and error.errno in _PASSING:
                    raise
                self._quarantine(step, error)
                continue
            tree, meta = found
            return step, fit_structure(tree, like, self.directory / str(step)), meta
        return None

    def _read(self, step: int) -> tuple[Any, dict]:
        restored = self._manager.restore(
            step, args=ocp.args.Composite(tree=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore())
        )
        tree = jax.tree.map(np.asarray, restored["tree"])
        return tree, restored["meta"]

    def _quarantine(self, step: int, error: Exception) -> None:
        self._manager.close()
        target = self.directory.parent / "quarantine" / f"{self.directory.name}-{step}-{int(time.time() * 1000)}"
        target.parent.mkdir(exist_ok=True)
        shutil.move(str(self.directory / str(step)), target)
        self._manager = self._open()
        telemetry.warn(
            f"checkpoint {self.directory / str(step)} cannot be read ({_first_line(error)[:160]}); moved to {target}, "
            f"{'going on from the one before it' if self.steps() else 'the stage starts again from its beginning'}"
        )

    def close(self) -> None:
        self._manager.close()


def _on_its_own() -> ocp.options.MultiprocessingOptions:
    """A process waits for no other: the first one writes, the others read copies."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    number = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=number, active_processes={number}, barrier_sync_key_prefix=f"process_{number}"
    )


def _plain_alias(owner: Any, directory: Path) -> Path:
    """A link to `directory` whose own path has no character that orbax misreads; gone with its owner."""
    folder = Path(tempfile.mkdtemp(prefix="cso_jax_checkpoints_"))
    link = folder / "stage"
    link.symlink_to(directory, target_is_directory=True)
    weakref.finalize(owner, _remove_alias, str(link))
    return link


def _remove_alias(link: str) -> None:
    try:
        os.unlink(link)
        os.rmdir(os.path.dirname(link))
    except OSError:
        return  # whoever cleans temporary folders was here first


def _same(one: Any, other: Any) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _leaves(tree: Any) -> dict[str, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(_key_name(k) for k in path): leaf for path, leaf in flat}


def _key_name(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def fit_structure(tree: Any, like: Any, where: str | Path) -> Any:
    """`tree` (nested dictionaries, lists) in the structure of `like`. Raises CheckpointError with the differences."""
    if like is None:
        return tree
    found, wanted = _leaves(tree), _leaves(like)
    problems = [f"missing {name}" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"unexpected {name}" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        if np.shape(found[name]) != np.shape(wanted[name]):
            problems.append(f"{name}: shape {np.shape(found[name])}, expected {np.shape(wanted[name])}")
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise CheckpointError(f"{where} holds another architecture than the config builds: {shown}")
    flat, structure = jax.tree_util.tree_flatten_with_path(like)
    names = ["/".join(_key_name(k) for k in path) for path, _ in flat]
    return jax.tree_util.tree_unflatten(structure, [found[name] for name in names])

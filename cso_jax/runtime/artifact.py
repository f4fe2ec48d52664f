"""An exported policy as a folder: written once, checked and loaded beside a robot.

    manifest.json, manifest.sha256   what the policy is, the hash of every other file, and the hash of that
    config.json                      what it was made with, to build `act` again
    parameters.npz                   its arrays by path, without pickle: what is loaded
    parameters/                      the same as an orbax checkpoint, for other programs
    README.md                        the model card
    act.stablehlo, act.json          a cache: `act` as a program, and which JAX made it when

Parameters and manifest are the archive. The program is good for about half a year of JAX versions (`jax.export`'s
promise); where it is older than that, damaged or missing, it is made again from the policy's code.
"""

import datetime
import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from cso_jax.files import atomic_write_bytes, atomic_write_text, expanded
from cso_jax.runtime import program
from cso_jax.runtime.manifest import Manifest

MANIFEST, CHECKSUM, CONFIG, PARAMETERS, CARD = (
    "manifest.json", "manifest.sha256", "config.json", "parameters.npz", "README.md",
)  # fmt: skip
PROGRAM, PROGRAM_NOTES = "act.stablehlo", "act.json"
BATCH_SIZES = (1, 8)
_LOG = logging.getLogger(__name__)
_PROMISED_DAYS = 180  # jax.export: a program is read by JAX of the next six months


class ArtifactError(RuntimeError):
    """A folder is no artifact that can be used; the message is one line and says what to do."""


class LoadedPolicy:
    """A policy that is ready to act; satisfies `cso_jax.runtime.serving.ServedPolicy`."""

    def __init__(
        self,
        manifest: Manifest,
        parameters: Mapping[str, np.ndarray],
        act: program.Act,
        batch_sizes: tuple[int, ...] = BATCH_SIZES,
    ) -> None:
        self.manifest = manifest
        self.batch_sizes = batch_sizes
        self._parameters = jax.device_put(dict(parameters))
        self._act = jax.jit(act)

    def warm_up(self) -> None:
        """Compile for, and run once, every size of `batch_sizes`."""
        history = (self.manifest.history,) if self.manifest.history > 1 else ()
        for rows in self.batch_sizes:
            observation = {
                entry.name: np.zeros((rows, *history, *entry.shape), entry.dtype) for entry in self.manifest.observation
            }
            counts = np.zeros((rows,), np.int32)
            self.act(observation, counts, np.zeros((rows, 2), np.uint32), counts)

    def act(
        self,
        observation: Mapping[str, np.ndarray],
        task: np.ndarray,
        episode_keys: np.ndarray,
        decision_index: np.ndarray,
    ) -> np.ndarray:
        """Chunks `[B, T, A]` float32, as `ServedPolicy.act` says."""
        chunks = self._act(self._parameters, dict(observation), task, episode_keys, decision_index)
        return np.asarray(chunks, np.float32)


def load(folder: str | Path, batch_sizes: tuple[int, ...] = BATCH_SIZES) -> LoadedPolicy:
    """The policy of an artifact, checked byte by byte. Raises ArtifactError."""
    folder = expanded(folder)
    manifest = read_manifest(folder)
    parameters = read_parameters(folder, manifest)
    return LoadedPolicy(manifest, parameters, _program(folder, manifest, parameters), batch_sizes)


def read_manifest(folder: Path) -> Manifest:
    """The manifest, after the hash of every file that it names. Raises ArtifactError."""
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is no folder; give the one that python -m cso_jax.export wrote")
    data = _bytes(folder / MANIFEST)
    expected = _bytes(folder / CHECKSUM).decode("ascii", "replace").strip()
    if hashlib.sha256(data).hexdigest() != expected:
        raise ArtifactError(f"{folder / MANIFEST} or {CHECKSUM} was changed or damaged: copy or export it again")
    try:
        manifest = Manifest.from_json(data.decode())
    except ValueError as error:
        raise ArtifactError(f"{folder / MANIFEST}: {error}") from None
    for name, digest in sorted(manifest.files.items()):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ArtifactError(f"{folder / MANIFEST} names a file outside of the artifact, {name!r}: export it again")
        if _hash(folder / name) != digest:
            raise ArtifactError(f"{folder / name} was changed or damaged: copy or export the artifact again")
    for name in (CONFIG, PARAMETERS):
        if name not in manifest.files:
            raise ArtifactError(f"{folder / MANIFEST} does not list {name}: export it again")
    return manifest


def read_parameters(folder: Path, manifest: Manifest) -> dict[str, np.ndarray]:
    """The arrays by path. Raises ArtifactError."""
    try:
        with np.load(io.BytesIO(_bytes(folder / PARAMETERS)), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{folder / PARAMETERS} cannot be read ({error}); export the artifact again") from None


def write(folder: Path, manifest: Manifest, parameters: Mapping[str, np.ndarray]) -> Manifest:
    """Finish an artifact whose other files lie in `folder` already; returns the manifest with their hashes.

    The manifest comes last: a folder without it is no artifact.
    """
    stream = io.BytesIO()
    np.savez(stream, **dict(parameters))  # type: ignore[arg-type]
    atomic_write_bytes(folder / PARAMETERS, stream.getvalue())
    cache = (PROGRAM, PROGRAM_NOTES, MANIFEST, CHECKSUM)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): _hash(path) for path in files}
    plain = manifest.to_plain() | {"files": {name: digest for name, digest in names.items() if name not in cache}}
    complete = Manifest.from_plain(plain)
    text = complete.to_json()
    atomic_write_text(folder / CHECKSUM, hashlib.sha256(text.encode()).hexdigest() + "\n")
    atomic_write_text(folder / MANIFEST, text)
    return complete


def write_program(folder: Path, data: bytes) -> None:
    """Keep `act`'s program, with what it was made by."""
    atomic_write_bytes(folder / PROGRAM, data)
    notes = {
        "jax": jax.__version__,
        "made": datetime.date.today().isoformat(),
        "expires": (datetime.date.today() + datetime.timedelta(days=_PROMISED_DAYS)).isoformat(),
        "platforms": list(program.PLATFORMS),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    atomic_write_text(folder / PROGRAM_NOTES, json.dumps(notes, indent=2) + "\n")


def _program(folder: Path, manifest: Manifest, parameters: Mapping[str, np.ndarray]) -> program.Act:
    """`act` from the cached program, or made again."""
    try:
        return program.deserialise(_cached(folder))
    except ValueError as error:
        reason = str(error)
    try:
        act = program.rebuilt_act(_bytes(folder / CONFIG).decode(), parameters, manifest)
    except ImportError as error:
        raise ArtifactError(
            f"{folder / PROGRAM} cannot be used ({reason}), and making it again takes the package "
            f"{error.name or 'flax'}: pip install it here, or export the policy again with jax {jax.__version__}"
        ) from None
    except ValueError as error:
        raise ArtifactError(f"{folder}: {error}") from None
    _LOG.warning(f"{PROGRAM} cannot be used ({reason}); made again from the policy's code")
    try:
        write_program(folder, program.serialise(act, parameters, manifest))
    except OSError as error:
        _LOG.warning(f"{folder / PROGRAM} cannot be kept ({error.strerror}); it will be made again the next time")
    return act


def _cached(folder: Path) -> bytes:
    """The bytes of the program. Raises ValueError, saying why, where they are not to be used."""
    try:
        data, notes = (folder / PROGRAM).read_bytes(), json.loads((folder / PROGRAM_NOTES).read_text("utf-8"))
        made_by, expires = str(notes["jax"]), datetime.date.fromisoformat(notes["expires"])
        digest = notes["sha256"]
    except OSError as error:
        raise ValueError(f"{error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{PROGRAM_NOTES} is damaged") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError("it was changed or damaged")
    if made_by != jax.__version__ and datetime.date.today() > expires:
        raise ValueError(f"it expired on {expires}, made by jax {made_by}")
    return data


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); give the folder of an export") from None


def _hash(path: Path) -> str:
    return hashlib.sha256(_bytes(path)).hexdigest()

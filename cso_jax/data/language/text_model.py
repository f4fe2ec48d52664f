"""A published text encoder on disk, and the layers that such encoders share, in NumPy.

A folder in the layout of the Hugging Face hub: weights as `model.safetensors` (or `pytorch_model.bin`), a tokeniser as
`tokenizer.json` (or `vocab.json` and `merges.txt`). Sentences are encoded one by one, so nothing is ever padded.
Letters: L tokens of a sentence, D width.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cso_jax.files import expanded
from cso_jax.interop.torch_files import Tensor, TorchFile, TorchFileError

INSTALL = "pip install -e '.[language]'"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

Weights = Mapping[str, np.ndarray]
"""Name in the published file -> float32 array."""


class LanguageError(RuntimeError):
    """Sentences cannot be embedded; the message says what is missing and how to get it."""


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of one model: weights, and the folder that holds the tokeniser."""

    weights: Path
    folder: Path

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the weights, 64 hexadecimal digits."""
        with open(self.weights, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def locate(path: str | Path) -> Files:
    """The files of a model in the folder `path`, or beside the weights file `path`.

    Raises LanguageError, naming what was looked for.
    """
    path = expanded(path)
    if path.is_file():
        return Files(path, path.parent)
    for name in _WEIGHTS:
        if (path / name).is_file():
            return Files(path / name, path)
    raise LanguageError(f"no text model at {path}: expected a folder with {' or '.join(_WEIGHTS)}, or such a file")


def read_weights(path: Path, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """The tensors whose names are `wanted`, as float32; the others are not read.

    Raises LanguageError for a damaged file, or one of another format.
    """
    if path.suffix == ".safetensors":
        safetensors = _library("safetensors")
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                return {name: file.get_tensor(name).astype(np.float32) for name in file.keys() if wanted(name)}  # noqa: SIM118
        except (safetensors.SafetensorError, OSError, TypeError) as error:
            raise LanguageError(f"cannot read the weights {path}: {error}; fetch the file again") from error
    try:
        with TorchFile(path) as torch_file:
            contents = torch_file.contents
            if not isinstance(contents, Mapping):
                raise LanguageError(f"{path} holds no table of weights")
            chosen = {name: value for name, value in contents.items() if isinstance(value, Tensor) and wanted(name)}
            return {name: torch_file.array(value).astype(np.float32) for name, value in chosen.items()}
    except TorchFileError as error:
        raise LanguageError(f"cannot read the weights {path}: {error}") from error


def read_tokeniser(folder: Path, from_merges: Callable[[Path, Path], Any] | None = None) -> Any:
    """The `tokenizers.Tokenizer` of a folder, without padding and truncation.

    `from_merges(vocabulary, merges)` builds it where there is no `tokenizer.json`. Raises LanguageError.
    """
    tokenizers = _library("tokenizers")
    path, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    try:
        if path.is_file():
            tokeniser = tokenizers.Tokenizer.from_file(str(path))
        elif from_merges and vocabulary.is_file() and merges.is_file():
            tokeniser = from_merges(vocabulary, merges)
        else:
            others = " (or vocab.json and merges.txt)" if from_merges else ""
            raise LanguageError(f"no tokeniser beside the weights: expected tokenizer.json{others} in {folder}")
    except LanguageError:
        raise
    except Exception as error:  # the library raises plain Exception for whatever it cannot parse
        raise LanguageError(f"cannot read the tokeniser in {folder}: {error}") from error
    tokeniser.no_padding()
    tokeniser.no_truncation()
    return tokeniser


def _library(name: str) -> ModuleType:
    if importlib.util.find_spec(name) is None:
        raise LanguageError(f"embedding sentences needs the package {name}: {INSTALL}")
    return importlib.import_module(name)


@contextlib.contextmanager
def expecting(model: str, path: Path):
    """Turn a missing tensor inside into a LanguageError: `path` does not hold `model`."""
    try:
        yield
    except KeyError as error:
        raise LanguageError(f"{path} does not hold {model}: there is no tensor {error}") from None


def linear(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    """`[L, D] -> [L, D']` with `<name>.weight` `[D', D]` and `<name>.bias`."""
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(x: np.ndarray, weights: Weights, name: str, epsilon: float) -> np.ndarray:
    """Normalise the last axis, then scale and shift by `<name>.weight` and `<name>.bias`."""
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + epsilon)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def attention(queries: np.ndarray, keys: np.ndarray, values: np.ndarray, heads: int, *, causal: bool) -> np.ndarray:
    """Multi-head attention over one sentence; projected inputs `[L, D]`, result `[L, D]`, heads side by side."""
    length, width = queries.shape
    q, k, v = (x.reshape(length, heads, width // heads).transpose(1, 0, 2) for x in (queries, keys, values))
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(np.float32(width // heads))
    if causal:
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (scores / scores.sum(-1, keepdims=True)) @ v
    return mixed.transpose(1, 0, 2).reshape(length, width)

"""Vectors of the tasks' sentences: from a published text encoder, or from a file.

The policy that is conditioned on language reads one constant vector per task (paper Appendix E: CLIP). "clip" is the
text half of CLIP ViT-B/32, 512 numbers, as the published QueST policies use it; "minilm" is all-MiniLM-L6-v2, 384
numbers, which installs as a package. Neither needs PyTorch.
"""

import difflib
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cso_jax import telemetry
from cso_jax.data.language import clip as clip_text
from cso_jax.data.language import minilm
from cso_jax.data.language.text_model import Files, LanguageError, locate
from cso_jax.files import expanded

__all__ = ["KINDS", "MODELS", "LanguageError", "embed", "load", "save", "task_embeddings"]

_ENCODERS: dict[str, Callable[[Files, Sequence[str]], np.ndarray]] = {"minilm": minilm.embed, "clip": clip_text.embed}
MODELS = tuple(_ENCODERS)
KINDS = (*MODELS, "file")

_CLIP_WANTED = (
    "the text encoder CLIP needs its weights: fetch model.safetensors (or pytorch_model.bin) and tokenizer.json of "
    "openai/clip-vit-base-patch32 from Hugging Face into one folder and name it "
    "(config.encoder.task_embedding_file, or --weights)"
)


def embed(
    sentences: Sequence[str],
    kind: str,
    *,
    weights: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> np.ndarray:
    """Vectors float32 `[n, E]` of `sentences`; "clip" as the encoder gives them, "minilm" of length one.

    Args:
      sentences: n texts; equal ones are encoded once.
      kind: "minilm" or "clip".
      weights: folder or weights file of the encoder. MiniLM's is found in its installed package when left out.
      cache_dir: where vectors are kept for the next time, by encoder and weights.

    Raises:
      LanguageError: weights or a package are missing, damaged, or of another model.
    """
    if kind not in _ENCODERS:
        raise LanguageError(f"the text encoder must be one of {', '.join(MODELS)}; got {kind!r}")
    if not weights and kind == "clip":
        raise LanguageError(_CLIP_WANTED)
    files = locate(weights or minilm.packaged())
    cache = Path(cache_dir) / f"{kind}-{files.digest[:16]}.npz" if cache_dir else None
    known = _cached(cache) if cache else {}
    wanted = [sentence for sentence in dict.fromkeys(sentences) if sentence not in known]
    if wanted:
        known |= dict(zip(wanted, _ENCODERS[kind](files, wanted), strict=True))
        if cache:
            _write(cache, sentences=np.array(list(known)), vectors=np.stack(list(known.values())))
    return np.stack([known[sentence] for sentence in sentences])


def task_embeddings(
    kind: str, tasks: Sequence[str], sentences: Sequence[str], *, file: str | Path = "", cache_dir: str | Path = ""
) -> np.ndarray:
    """Vectors float32 `[len(tasks), E]` of the tasks, in their order.

    `kind` is "minilm" or "clip", with `file` their weights, or "file", with `file` the vectors. Raises LanguageError.
    """
    if kind == "file":
        return load(file, tasks, sentences)
    return embed(sentences, kind, weights=file or None, cache_dir=cache_dir or None)


def save(file: str | Path, tasks: Sequence[str], vectors: np.ndarray, sentences: Sequence[str] = ()) -> None:
    """Write the vectors `[n, E]` of n tasks to a .npz file, with the sentences they come from. `load` reads it."""
    columns = {"tasks": np.array(list(tasks)), "vectors": np.asarray(vectors, np.float32)}
    if sentences:
        columns["sentences"] = np.array(list(sentences))
    _write(Path(file), **columns)


def load(file: str | Path, tasks: Sequence[str], sentences: Sequence[str] = ()) -> np.ndarray:
    """Vectors float32 `[len(tasks), E]` of a file that `save` wrote, or one made by hand.

    A .npz file has one vector `[E]` per name, a task's or its sentence; a .npy file has `[n, E]`, in the order of the
    tasks. Raises LanguageError for a file that is no such thing or lacks a task.
    """
    path = expanded(file)
    if not str(file) or not path.is_file():
        raise LanguageError(
            f"no file of task embeddings {str(file)!r}: python -m cso_jax.data language TASKS {str(file) or 'OUT.npz'} "
            "--model=minilm makes one"
        )
    try:
        contents = np.load(path, allow_pickle=False)
        if isinstance(contents, np.ndarray):
            return _checked(path, contents, len(tasks))
        with contents:
            columns = {name: contents[name] for name in contents.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise LanguageError(f"{path} is not a .npz or .npy file of vectors: {error}") from error
    by_name = _by_name(columns)
    if not by_name and len(columns) == 1:
        return _checked(path, next(iter(columns.values())), len(tasks))
    chosen = []
    for number, task in enumerate(tasks):
        names = [task, *sentences[number : number + 1]]
        found = next((name for name in names if name in by_name), None)
        if found is None:
            near = difflib.get_close_matches(task, by_name, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise LanguageError(f"{path} has no vector of the task {task!r}{hint} (it has {len(by_name)})")
        chosen.append(by_name[found])
    if len({vector.shape for vector in chosen}) > 1:
        raise LanguageError(f"{path} holds vectors of different sizes: {sorted({v.shape for v in chosen})}")
    return _checked(path, np.stack(chosen), len(tasks))


def _by_name(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Name -> vector `[E]`, of the columns that `save` writes or of one array per name."""
    if "vectors" not in columns:
        return {name: values for name, values in columns.items() if values.ndim == 1}
    return {
        str(name): vector
        for key in ("sentences", "tasks")
        for name, vector in zip(columns.get(key, ()), columns["vectors"], strict=False)
    }


def _checked(path: Path, vectors: np.ndarray, tasks: int) -> np.ndarray:
    if vectors.ndim != 2 or len(vectors) != tasks or vectors.dtype.kind != "f":
        raise LanguageError(
            f"{path} should hold one vector of numbers for each of {tasks} tasks; it holds {vectors.dtype} of the "
            f"shape {list(vectors.shape)}"
        )
    if not np.isfinite(vectors).all():
        raise LanguageError(f"{path} holds numbers that are not finite")
    return vectors.astype(np.float32)


def _cached(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as contents:
            return dict(zip(map(str, contents["sentences"]), contents["vectors"], strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        telemetry.warn(f"the cache {path} is damaged and is made anew: {error}")
        return {}


def _write(path: Path, **columns: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp.npz")
    try:
        np.savez(temporary, allow_pickle=False, **columns)  # type: ignore[arg-type]
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

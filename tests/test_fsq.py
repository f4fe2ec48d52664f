"""Finite scalar quantisation: hand-worked values, exact round trips, straight-through gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cso_jax import fsq

LEVELS = (8, 5, 5, 5)


@pytest.mark.parametrize("levels", [LEVELS, (2,), (3, 2), (7, 6, 4), (16, 9), (5, 5, 5, 5, 5)])
def test_every_index_survives_the_round_trip(levels):
    size = fsq.codebook_size(levels)
    indices = jnp.arange(size)
    codes = fsq.indices_to_codes(indices, levels)
    assert codes.shape == (size, len(levels)) and codes.dtype == jnp.float32
    assert float(jnp.abs(codes).max()) <= 1.0
    assert len(np.unique(np.asarray(codes), axis=0)) == size
    back = fsq.codes_to_indices(codes, levels)
    assert back.dtype == jnp.int32
    np.testing.assert_array_equal(back, indices)


def test_codebook_size():
    assert fsq.codebook_size(LEVELS) == 1000


def test_hand_worked_codes():
    # 8 levels: integers -4..3 over 4; 5 levels: integers -2..2 over 2. First level fastest.
    codes = jnp.array([[-1.0, -1.0, -1.0, -1.0], [0.75, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [-0.75, -1, -0.5, -1]])
    np.testing.assert_array_equal(fsq.codes_to_indices(codes, LEVELS), [0, 999, 4 + 8 * 2 + 40 * 2 + 200 * 2, 1 + 40])
    np.testing.assert_array_equal(fsq.indices_to_codes(jnp.array([0, 999, 500, 41]), LEVELS), codes)


def test_zero_maps_to_zero_and_saturation_to_the_ends():
    z = jnp.array([[0.0] * 4, [50.0] * 4, [-50.0] * 4])
    expected = [[0.0] * 4, [0.75, 1, 1, 1], [-1.0] * 4]
    np.testing.assert_array_equal(fsq.quantize(z, LEVELS), expected)


def test_hand_worked_bound():
    # L = 5: half = 4 * 1.001 / 2 = 2.002, no offset. tanh(0.3) * 2.002 = 0.5832 -> 1 -> code 0.5.
    z = jnp.array([0.3])
    np.testing.assert_allclose(fsq.bound(z, (5,)), [np.tanh(0.3) * 2.002], rtol=1e-6)
    np.testing.assert_array_equal(fsq.quantize(z, (5,)), [0.5])
    # L = 8: half = 3.5035, offset 0.5, shift atanh(0.5 / 3.5035) = 0.143695.
    np.testing.assert_allclose(fsq.bound(z, (8,)), [np.tanh(0.3 + 0.143695) * 3.5035 - 0.5], rtol=1e-5)


@pytest.mark.parametrize("levels", [LEVELS, (2, 3), (6, 7)])
def test_quantize_reaches_exact_codes_for_any_input(levels):
    z = jax.random.uniform(jax.random.key(0), (40_000, len(levels)), minval=-6, maxval=6)
    codes = jax.jit(fsq.quantize, static_argnums=1)(z, levels)
    indices = fsq.codes_to_indices(codes, levels)
    assert int(indices.min()) >= 0 and int(indices.max()) < fsq.codebook_size(levels)
    # Codes are exactly those of their index, although computed through the straight-through sum.
    np.testing.assert_array_equal(codes, fsq.indices_to_codes(indices, levels))
    assert [len(np.unique(column)) for column in np.asarray(codes).T] == list(levels)


def test_gradient_is_that_of_the_bound():
    z = jax.random.normal(jax.random.key(1), (16, 4))
    scale = jnp.array([4.0, 2.0, 2.0, 2.0])
    actual = jax.grad(lambda z: jnp.sum(fsq.quantize(z, LEVELS) ** 2))(z)
    slope = jax.vmap(
        jax.vmap(jax.grad(lambda x, d: fsq.bound(jnp.zeros(4).at[d].set(x), LEVELS)[d]), (0, 0)), (0, None)
    )
    expected = 2 * fsq.quantize(z, LEVELS) * slope(z, jnp.arange(4)) / scale
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    # Hand-worked: at z = 0 with L = 5 the slope is half * sech^2(0) / 2 = 1.001.
    np.testing.assert_allclose(jax.grad(lambda x: fsq.quantize(x, (5,))[0])(jnp.zeros(1)), [1.001], rtol=1e-6)


def test_works_under_vmap():
    z = jax.random.normal(jax.random.key(2), (3, 5, 4))
    np.testing.assert_array_equal(jax.vmap(lambda z: fsq.quantize(z, LEVELS))(z), fsq.quantize(z, LEVELS))


@pytest.mark.parametrize("levels", [(), (8, 1), (0,)])
def test_rejects_impossible_levels(levels):
    with pytest.raises(ValueError, match="levels"):
        fsq.codebook_size(levels)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (3, 2), (7, 4)])
def test_real_digits_round_to_the_digits_of_the_index(levels):
    z = jax.random.normal(jax.random.key(0), (200, len(levels))) * 3
    indices = fsq.codes_to_indices(fsq.quantize(z, levels), levels)
    np.testing.assert_array_equal(jnp.round(fsq.real_digits(z, levels)), fsq.indices_to_digits(indices, levels))


def test_digits_of_an_index_worked_by_hand():
    """987 = 3 + 8 * (3 + 5 * (4 + 5 * 4)) in the levels 8, 5, 5, 5."""
    np.testing.assert_array_equal(
        fsq.indices_to_digits(jnp.array([0, 987]), (8, 5, 5, 5)), [[0, 0, 0, 0], [3, 3, 4, 4]]
    )

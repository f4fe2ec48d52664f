"""Finite scalar quantisation (FSQ, Mentzer et al., arXiv:2309.15505): the skill codebook of QueST.

Every latent dimension is squashed into a bounded interval and rounded to one of its `levels`, so the codebook is the
product of the levels (8 x 5 x 5 x 5 = 1000 skills), needs no codebook parameters and cannot collapse.

Shapes: `z` and `codes` are `[..., len(levels)]`, indices are `[...]` int32. The first level varies fastest in the
index, as in the published QueST checkpoints.
"""

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

# Widens the squashing interval a little beyond the outermost integers, so that a saturated tanh still rounds to them.
_MARGIN = 1e-3


def codebook_size(levels: Sequence[int]) -> int:
    """Number of distinct codes, the product of the levels."""
    _check_levels(levels)
    return math.prod(levels)


def bound(z: jax.Array, levels: Sequence[int]) -> jax.Array:
    """Squashes `z [..., len(levels)]` so that rounding gives exactly `levels[i]` integers in dimension i.

    Even levels have no integer in the middle: their interval is shifted by one half to `-L/2 .. L/2 - 1`, and the
    input is shifted so that `z = 0` still maps to 0.
    """
    _check_levels(levels)
    chex.assert_axis_dimension(z, -1, len(levels))
    level = np.asarray(levels, np.float64)
    half = (level - 1) * (1 + _MARGIN) / 2
    offset = np.where(level % 2 == 0, 0.5, 0.0)
    shift = np.arctanh(offset / half)
    return jnp.tanh(z + shift.astype(z.dtype)) * half.astype(z.dtype) - offset.astype(z.dtype)


def quantize(z: jax.Array, levels: Sequence[int]) -> jax.Array:
    """Rounds `z [..., len(levels)]` to codes in [-1, 1]; the gradient is that of `bound` (straight-through)."""
    bounded = bound(z, levels)
    # Written as constant + (b - constant b), not b + constant (q - b): the second form can miss q by one ulp.
    rounded = jax.lax.stop_gradient(jnp.round(bounded)) + (bounded - jax.lax.stop_gradient(bounded))
    return rounded / _half_width(levels, z.dtype)


def real_digits(z: jax.Array, levels: Sequence[int]) -> jax.Array:
    """`z [..., len(levels)]` as digits before they are rounded: real numbers about `0 .. levels[i] - 1`.

    Rounded they are the digits of the index that `quantize` leads to.
    """
    return bound(z, levels) + _half_width(levels, z.dtype)


def codes_to_indices(codes: jax.Array, levels: Sequence[int]) -> jax.Array:
    """Codes `[..., len(levels)]` (as returned by `quantize`) to indices `[...]` int32 in `[0, codebook_size)`."""
    _check_levels(levels)
    chex.assert_axis_dimension(codes, -1, len(levels))
    half_width = _half_width(levels, codes.dtype)
    return digits_to_indices(codes * half_width + half_width, levels)


def digits_to_indices(digits: jax.Array, levels: Sequence[int]) -> jax.Array:
    """Digits `[..., len(levels)]`, rounded to whole numbers, to indices `[...]` int32."""
    whole = jnp.round(digits).astype(jnp.int32)
    return jnp.sum(whole * jnp.asarray(_basis(levels)), axis=-1, dtype=jnp.int32)


def indices_to_codes(indices: jax.Array, levels: Sequence[int]) -> jax.Array:
    """Indices `[...]` in `[0, codebook_size)` to float32 codes `[..., len(levels)]`; inverse of `codes_to_indices`."""
    return digits_to_codes(indices_to_digits(indices, levels), levels)


def digits_to_codes(digits: jax.Array, levels: Sequence[int]) -> jax.Array:
    """Digits `[..., len(levels)]`, whole numbers or what lies between them, to float32 codes."""
    half_width = _half_width(levels, jnp.float32)
    return (digits.astype(jnp.float32) - half_width) / half_width


def indices_to_digits(indices: jax.Array, levels: Sequence[int]) -> jax.Array:
    """Indices `[...]` to their digits `[..., len(levels)]` int32, digit i in `0 .. levels[i] - 1`."""
    _check_levels(levels)
    chex.assert_type(indices, int)
    return (indices[..., None] // jnp.asarray(_basis(levels))) % jnp.asarray(levels, jnp.int32)


def _basis(levels: Sequence[int]) -> np.ndarray:
    return np.concatenate([[1], np.cumprod(levels[:-1])]).astype(np.int32)


def _half_width(levels: Sequence[int], dtype: jax.typing.DTypeLike) -> jax.Array:
    return jnp.asarray(np.asarray(levels) // 2, dtype)


def _check_levels(levels: Sequence[int]) -> None:
    if not levels or any(level < 2 for level in levels):
        raise ValueError(f"FSQ levels must be a non-empty sequence of integers >= 2, got {tuple(levels)}")

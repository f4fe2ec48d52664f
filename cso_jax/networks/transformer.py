"""Pre-norm transformer layers with PyTorch's numerics, shared by the action autoencoder and the skill prior.

They compute what `torch.nn.TransformerEncoderLayer` / `TransformerDecoderLayer` with `norm_first=True` and
`activation="gelu"` compute, so published QueST parameters can be loaded: LayerNorm eps 1e-5, exact (erf) GELU,
feed-forward width 4D, biases everywhere, query/key/value packed in one projection (columns q, k, v; torch's
`in_proj_weight` is the transpose). Dropout sits on the attention probabilities, after each attention output,
after GELU and after the feed-forward. Initial values follow torch's defaults.

Letters: B batch, S sequence, M memory length, L cache length, D width, H heads, Dh = D / H.

Two choices here are about speed on CPUs, where XLA's gradients of matrix products with more than two axes are slow:
`Linear` flattens all leading axes into rows, and attention brings the heads forward before its (batched) products.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

torch_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(-1/sqrt(fan_in), 1/sqrt(fan_in))


def torch_bias_init(fan_in: int) -> nn.initializers.Initializer:
    """torch's default bias initialiser, U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    limit = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


class Linear(nn.Module):
    """`y = x @ kernel + bias` over the last axis, computed as one 2-D product whatever the leading axes."""

    features: int
    zero_bias: bool = False  # torch starts the output projection of its attention with a zero bias
    zero_kernel: bool = False  # an output that is to start at its bias

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in = x.shape[-1]
        bias_init = nn.initializers.zeros if self.zero_bias else torch_bias_init(fan_in)
        kernel_init = nn.initializers.zeros if self.zero_kernel else torch_kernel_init
        kernel = self.param("kernel", kernel_init, (fan_in, self.features))
        bias = self.param("bias", bias_init, (self.features,))
        return (x.reshape(-1, fan_in) @ kernel + bias).reshape(*x.shape[:-1], self.features)


def layer_norm(name: str | None = None) -> nn.LayerNorm:
    """LayerNorm as torch computes it: eps 1e-5, variance about the mean (not E[x^2] - E[x]^2)."""
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU in torch's form; jax.nn.gelu goes through erfc, which takes twice the time on a CPU."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * np.sqrt(0.5).astype(x.dtype)))


class Dropout(nn.Module):
    """Inverted dropout whose mask comes from a counter hash instead of one threefry block per element.

    On a CPU, threefry bits for the feed-forward activations cost several times the GELU itself; two rounds of an
    integer finaliser (murmur3's constants) over the element index, keyed by 64 bits from the "dropout" stream,
    cost next to nothing and are ample for a mask. Draws stay a pure function of the key.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        if deterministic or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = keep_mask(self.make_rng("dropout"), x.shape, keep)
        return jnp.where(mask, x / keep, 0.0)


def keep_mask(key: chex.PRNGKey, shape: tuple[int, ...], keep: float) -> jax.Array:
    """Boolean mask of `shape`, each element True with probability `keep` (to 2^-32), a pure function of `key`."""
    seed = jax.random.bits(key, (2,), jnp.uint32)
    index = jax.lax.iota(jnp.uint32, int(np.prod(shape))).reshape(shape)
    bits = _mix(_mix(index * np.uint32(0x9E3779B9) + seed[0]) ^ seed[1])
    return bits < np.uint32(min(keep * 2.0**32, 2.0**32 - 1))


def _mix(h: jax.Array) -> jax.Array:
    h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def positional_encoding(length: int, width: int) -> jax.Array:
    """Sinusoidal positions `[length, width]`, interleaved: `pe[p, 2i] = sin(p f_i)`, `pe[p, 2i+1] = cos(p f_i)`.

    `f_i = 10000^(-2i / width)`. Computed in float32 like the published models.
    """
    if width % 2:
        raise ValueError(f"positional_encoding needs an even width, got {width}")
    frequency = 1.0 / 10000.0 ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
    angle = np.arange(length, dtype=np.float32)[:, None] * frequency.astype(np.float32)
    return jnp.asarray(np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, width), jnp.float32)


class KeyValueCache(NamedTuple):
    """Keys and values of the positions seen so far, `[B, H, L, Dh]` each; positions not yet written are zero."""

    key: jax.Array
    value: jax.Array


def empty_cache(batch: int, length: int, width: int, heads: int) -> KeyValueCache:
    """A cache for one attention layer over at most `length` positions."""
    zeros = jnp.zeros((batch, heads, length, width // heads), jnp.float32)
    return KeyValueCache(zeros, zeros)


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with torch's packed input projection.

    Parameters: `in_proj_kernel [D, 3D]` and `in_proj_bias [3D]` (columns q, k, v), `out_proj`.
    """

    width: int
    heads: int
    dropout: float

    def setup(self):
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        self.in_proj_kernel = self.param(
            "in_proj_kernel", nn.initializers.xavier_uniform(), (self.width, 3 * self.width)
        )
        self.in_proj_bias = self.param("in_proj_bias", nn.initializers.zeros, (3 * self.width,))
        self.out_proj = Linear(self.width, zero_bias=True)
        self.probability_dropout = Dropout(self.dropout)

    def __call__(self, x: jax.Array, *, causal: bool, deterministic: bool) -> jax.Array:
        """Self-attention, `x [B, S, D] -> [B, S, D]`."""
        query, key, value = self._project(x, 0, 3)
        mask = np.tril(np.ones((x.shape[1], x.shape[1]), bool)) if causal else None
        return self._attend(query, key, value, mask, deterministic)

    def cross(self, x: jax.Array, memory: jax.Array, *, deterministic: bool) -> jax.Array:
        """Attention of `x [B, S, D]` to all of `memory [B, M, D]`."""
        (query,) = self._project(x, 0, 1)
        key, value = self._project(memory, 1, 3)
        return self._attend(query, key, value, None, deterministic)

    def extend(self, x: jax.Array, cache: KeyValueCache, position: int | jax.Array) -> tuple[jax.Array, KeyValueCache]:
        """Causal self-attention of new positions `position .. position + S - 1`, given the cache of earlier ones.

        Equals the rows of `__call__(causal=True)` at those positions, without dropout.
        """
        query, key, value = self._project(x, 0, 3)
        cache = KeyValueCache(
            jax.lax.dynamic_update_slice_in_dim(cache.key, key, position, axis=2),
            jax.lax.dynamic_update_slice_in_dim(cache.value, value, position, axis=2),
        )
        rows = position + jnp.arange(x.shape[1])
        mask = jnp.arange(cache.key.shape[2])[None, :] <= rows[:, None]
        return self._attend(query, cache.key, cache.value, mask, True), cache

    def _project(self, x: jax.Array, start: int, stop: int) -> list[jax.Array]:
        """The packed projections number `start .. stop - 1` (0 query, 1 key, 2 value) of x, each `[B, H, S, Dh]`."""
        batch, length, _ = x.shape
        columns = slice(start * self.width, stop * self.width)
        packed = x.reshape(-1, self.width) @ self.in_proj_kernel[:, columns] + self.in_proj_bias[columns]
        parts = jnp.split(packed, stop - start, axis=-1)
        return [p.reshape(batch, length, self.heads, -1).transpose(0, 2, 1, 3) for p in parts]

    def _attend(self, query, key, value, mask, deterministic: bool) -> jax.Array:
        length, head_width = query.shape[2:]
        scores = (query * head_width**-0.5) @ key.swapaxes(-1, -2)  # [B, H, S, M]
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        probabilities = self.probability_dropout(jax.nn.softmax(scores, axis=-1), deterministic=deterministic)
        mixed = (probabilities @ value).swapaxes(1, 2)  # [B, S, H, Dh]
        return self.out_proj(mixed.reshape(-1, length, self.width))


class FeedForward(nn.Module):
    """Linear to 4D, exact GELU, dropout, Linear back to D."""

    width: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        hidden = gelu(Linear(4 * self.width, name="linear1")(x))
        hidden = Dropout(self.dropout)(hidden, deterministic=deterministic)
        return Linear(self.width, name="linear2")(hidden)


class EncoderLayer(nn.Module):
    """Pre-norm self-attention and feed-forward, `[B, S, D] -> [B, S, D]`."""

    width: int
    heads: int
    dropout: float

    def setup(self):
        self.norm1, self.norm2 = layer_norm(), layer_norm()
        self.self_attn = MultiHeadAttention(self.width, self.heads, self.dropout)
        self.feed_forward = FeedForward(self.width, self.dropout)
        self.drop = Dropout(self.dropout)

    def __call__(self, x: jax.Array, *, causal: bool = True, deterministic: bool = True) -> jax.Array:
        chex.assert_shape(x, (None, None, self.width))
        attended = self.self_attn(self.norm1(x), causal=causal, deterministic=deterministic)
        return self._finish(x, attended, deterministic)

    def extend(self, x: jax.Array, cache: KeyValueCache, position: int | jax.Array) -> tuple[jax.Array, KeyValueCache]:
        """The causal layer on new positions only; see `MultiHeadAttention.extend`."""
        chex.assert_shape(x, (None, None, self.width))
        attended, cache = self.self_attn.extend(self.norm1(x), cache, position)
        return self._finish(x, attended, True), cache

    def _finish(self, x: jax.Array, attended: jax.Array, deterministic: bool) -> jax.Array:
        x = x + self.drop(attended, deterministic=deterministic)
        hidden = self.feed_forward(self.norm2(x), deterministic=deterministic)
        return x + self.drop(hidden, deterministic=deterministic)


class DecoderLayer(nn.Module):
    """Pre-norm causal self-attention, unmasked cross-attention to a memory, and feed-forward."""

    width: int
    heads: int
    dropout: float

    def setup(self):
        self.norm1, self.norm2, self.norm3 = layer_norm(), layer_norm(), layer_norm()
        self.self_attn = MultiHeadAttention(self.width, self.heads, self.dropout)
        self.cross_attn = MultiHeadAttention(self.width, self.heads, self.dropout)
        self.feed_forward = FeedForward(self.width, self.dropout)
        self.drop = Dropout(self.dropout)

    def __call__(self, x: jax.Array, memory: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """`x [B, S, D]` attending to `memory [B, M, D]`, to `[B, S, D]`."""
        chex.assert_shape([x, memory], (None, None, self.width))
        attended = self.self_attn(self.norm1(x), causal=True, deterministic=deterministic)
        x = x + self.drop(attended, deterministic=deterministic)
        attended = self.cross_attn.cross(self.norm2(x), memory, deterministic=deterministic)
        x = x + self.drop(attended, deterministic=deterministic)
        hidden = self.feed_forward(self.norm3(x), deterministic=deterministic)
        return x + self.drop(hidden, deterministic=deterministic)

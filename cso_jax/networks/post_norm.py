"""Post-norm transformer layers, normalised after each addition, as DETR and ACT have them.

They compute what `torch.nn.TransformerEncoderLayer` and `TransformerDecoderLayer` compute with their defaults, ReLU and
`norm_first=False`, except that positions are added to queries and keys, not to values, and the decoder is not causal.

Letters: B batch, S sequence, M memory length, D width.
"""

import chex
import jax
from flax import linen as nn

from cso_jax.networks.transformer import Dropout, Linear, layer_norm


class _FeedForward(nn.Module):
    width: int
    hidden: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        x = jax.nn.relu(Linear(self.hidden, name="linear1")(x))
        x = Dropout(self.dropout)(x, deterministic=deterministic)
        return Linear(self.width, name="linear2")(x)


class _Attention(nn.Module):
    """Attention of queries to a memory, with positions beside both."""

    width: int
    heads: int
    dropout: float

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array,
        positions: jax.Array,
        memory_positions: jax.Array,
        *,
        deterministic: bool,
    ) -> jax.Array:
        attention = nn.MultiHeadDotProductAttention(
            self.heads, qkv_features=self.width, dropout_rate=self.dropout, name="attention"
        )
        # One mask of dropout for all rows and heads is flax's default; the key comes from the stream "dropout".
        return attention(x + positions, memory + memory_positions, memory, deterministic=deterministic)


class EncoderLayer(nn.Module):
    """Self-attention without a mask, and feed-forward: `[B, S, D] -> [B, S, D]`; `positions` `[S, D]`."""

    width: int
    heads: int
    hidden: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, positions: jax.Array, *, deterministic: bool) -> jax.Array:
        chex.assert_shape(x, (None, *positions.shape))
        drop = Dropout(self.dropout)
        mixed = _Attention(self.width, self.heads, self.dropout, name="self")(
            x, x, positions, positions, deterministic=deterministic
        )
        x = layer_norm("norm1")(x + drop(mixed, deterministic=deterministic))
        found = _FeedForward(self.width, self.hidden, self.dropout, name="feed_forward")(x, deterministic=deterministic)
        return layer_norm("norm2")(x + drop(found, deterministic=deterministic))


class DecoderLayer(nn.Module):
    """Self-attention, attention to a memory, and feed-forward: `x` `[B, S, D]`, `memory` `[B, M, D]`."""

    width: int
    heads: int
    hidden: int
    dropout: float

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        memory: jax.Array,
        positions: jax.Array,
        memory_positions: jax.Array,
        *,
        deterministic: bool,
    ) -> jax.Array:
        chex.assert_shape([x, memory], [(None, *positions.shape), (None, *memory_positions.shape)])
        drop = Dropout(self.dropout)
        mixed = _Attention(self.width, self.heads, self.dropout, name="self")(
            x, x, positions, positions, deterministic=deterministic
        )
        x = layer_norm("norm1")(x + drop(mixed, deterministic=deterministic))
        mixed = _Attention(self.width, self.heads, self.dropout, name="cross")(
            x, memory, positions, memory_positions, deterministic=deterministic
        )
        x = layer_norm("norm2")(x + drop(mixed, deterministic=deterministic))
        found = _FeedForward(self.width, self.hidden, self.dropout, name="feed_forward")(x, deterministic=deterministic)
        return layer_norm("norm3")(x + drop(found, deterministic=deterministic))

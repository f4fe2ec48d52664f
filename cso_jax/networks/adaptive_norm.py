"""Decoder layers whose normalisation a condition shifts, scales and gates: adaLN-Zero (Peebles and Xie 2023).

Letters: B batch, S sequence, M memory length, D width.
"""

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from cso_jax.networks.transformer import Dropout, FeedForward, Linear, MultiHeadAttention, layer_norm


class AdaptiveDecoderLayer(nn.Module):
    """Causal self-attention, attention to a memory, feed-forward; the first and last are gated by a condition.

    At first every gate is zero, and what attends to the memory is the sequence as it came.
    """

    width: int
    heads: int
    dropout: float

    def setup(self):
        self.norm1, self.norm2, self.norm3 = layer_norm(), layer_norm(), layer_norm()
        self.self_attn = MultiHeadAttention(self.width, self.heads, self.dropout)
        self.cross_attn = MultiHeadAttention(self.width, self.heads, self.dropout)
        self.feed_forward = FeedForward(self.width, self.dropout)
        self.drop = Dropout(self.dropout)
        self.modulation = Linear(6 * self.width, zero_bias=True, zero_kernel=True)

    def __call__(
        self, x: jax.Array, memory: jax.Array, condition: jax.Array, *, deterministic: bool = True
    ) -> jax.Array:
        """`x [B, S, D]` attending to `memory [B, M, D]` under a `condition [B, D]`, to `[B, S, D]`."""
        chex.assert_shape([x, memory], (None, None, self.width))
        chex.assert_shape(condition, (None, self.width))
        modulation = self.modulation(jax.nn.silu(condition))[:, None]
        shift_1, scale_1, gate_1, shift_3, scale_3, gate_3 = jnp.split(modulation, 6, axis=-1)
        seen = (1.0 + scale_1) * self.norm1(x) + shift_1
        attended = self.self_attn(seen, causal=True, deterministic=deterministic)
        x = x + gate_1 * self.drop(attended, deterministic=deterministic)
        attended = self.cross_attn.cross(self.norm2(x), memory, deterministic=deterministic)
        x = x + self.drop(attended, deterministic=deterministic)
        seen = (1.0 + scale_3) * self.norm3(x) + shift_3
        hidden = self.feed_forward(seen, deterministic=deterministic)
        return x + gate_3 * self.drop(hidden, deterministic=deterministic)

"""The action autoencoder of QueST: action chunks to K discrete skill tokens and back (paper section E.1, Eq. 1).

Encoder: Linear, three blocks of causal convolution -> GroupNorm -> Mish whose strides shorten T steps to K tokens,
sinusoidal positions, causal pre-norm transformer layers, FSQ. Decoder: the T positional encodings are the queries of
causal pre-norm decoder layers that cross-attend to the K codes; a Linear gives the actions.

Letters: B batch, T chunk length, A action dimension, K tokens, D width.
"""

import math

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from cso_jax import fsq
from cso_jax.networks.transformer import (
    DecoderLayer,
    EncoderLayer,
    Linear,
    positional_encoding,
    torch_bias_init,
    torch_kernel_init,
)
from cso_jax.policies.quest.residual_autoencoder import Choice

_GROUPS = 8


class CausalConv(nn.Module):
    """A causal convolution as one matrix product over the unfolded taps, `[B, T, D] -> [B, T / stride, features]`.

    The parameters are those of `flax.linen.Conv`.
    """

    features: int
    kernel_size: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        fan_in = self.kernel_size * width
        kernel = self.param("kernel", torch_kernel_init, (self.kernel_size, width, self.features))
        bias = self.param("bias", torch_bias_init(fan_in), (self.features,))
        padded = jnp.pad(x, ((0, 0), (self.kernel_size - 1, 0), (0, 0)))
        taps = [padded[:, tap : tap + length : self.stride] for tap in range(self.kernel_size)]
        unfolded = jnp.concatenate(taps, axis=-1)
        y = unfolded.reshape(-1, fan_in) @ kernel.reshape(fan_in, self.features) + bias
        return y.reshape(batch, -1, self.features)


class CausalConvBlock(nn.Module):
    """Causal convolution, GroupNorm over (channels in the group x time), Mish: `[B, T, D] -> [B, T / stride, D]`.

    Output j reads inputs `stride * j - (kernel - 1) .. stride * j`, zeros before the start. So with a stride above
    one the last steps of a chunk are never read, while GroupNorm mixes all times that are.
    """

    width: int
    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = CausalConv(self.width, self.kernel, self.stride, name="conv")(x)
        x = nn.GroupNorm(_GROUPS, epsilon=1e-5, use_fast_variance=False, name="norm")(x)
        return jax.nn.mish(x)


class ActionAutoencoder(nn.Module):
    """Quantised autoencoder of action chunks `[B, T, A]` with K = T / prod(strides) tokens.

    Strides (2, 2, 2), (2, 2, 1), (2, 1, 1) give 4, 8, 16 tokens for T = 32.
    """

    action_dim: int
    chunk_length: int = 32
    width: int = 256
    encoder_layers: int = 2
    decoder_layers: int = 4
    heads: int = 4
    levels: tuple[int, ...] = (8, 5, 5, 5)
    kernels: tuple[int, ...] = (5, 3, 3)
    strides: tuple[int, ...] = (2, 2, 1)
    dropout: float = 0.1

    @property
    def tokens(self) -> int:
        """K, the number of skill tokens of one chunk."""
        return self.chunk_length // math.prod(self.strides)

    @property
    def groups(self) -> int:
        """1: the digits of all tokens follow from the chunk alone."""
        return 1

    @property
    def vocabulary(self) -> int:
        """Number of distinct tokens."""
        return fsq.codebook_size(self.levels)

    def setup(self):
        self._check_fields()
        self.action_proj = Linear(self.width)
        self.conv_blocks = [
            CausalConvBlock(self.width, kernel, stride)
            for kernel, stride in zip(self.kernels, self.strides, strict=True)
        ]
        self.encoder = [EncoderLayer(self.width, self.heads, self.dropout) for _ in range(self.encoder_layers)]
        self.project_in = Linear(len(self.levels))
        self.project_out = Linear(self.width)
        self.decoder = [DecoderLayer(self.width, self.heads, self.dropout) for _ in range(self.decoder_layers)]
        self.action_head = Linear(self.action_dim)

    def __call__(self, actions: jax.Array, *, deterministic: bool = True) -> tuple[jax.Array, jax.Array]:
        """Actions `[B, T, A]` to (reconstruction `[B, T, A]`, indices `[B, K]` int32).

        Needs a "dropout" rng when not deterministic. Gradients pass the quantiser straight through.
        """
        codes = self._encode_codes(actions, deterministic)
        return self._decode_codes(codes, deterministic), fsq.codes_to_indices(codes, self.levels)

    def encode(self, actions: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Actions `[B, T, A]` to skill tokens `[B, K]` int32."""
        return fsq.codes_to_indices(self._encode_codes(actions, deterministic), self.levels)

    def real_digits(self, actions: jax.Array, tokens: jax.Array | None = None) -> jax.Array:
        """Actions `[B, T, A]` to the digits `[B, K, len(levels)]` of their tokens as real numbers, before rounding.

        No token depends on the `tokens` that are taken before it.
        """
        del tokens
        return fsq.real_digits(self._latent(actions, True), self.levels)

    def walk(self, actions: jax.Array, choose: Choice) -> tuple[jax.Array, jax.Array]:
        """The digits `[B, K, len(levels)]` that `choose` gives all tokens at once, and the real ones it is given."""
        real = self.real_digits(actions)
        return choose(real, 0), real

    def decode(self, indices: jax.Array, *, length: int | None = None) -> jax.Array:
        """Skill tokens `[B, K]` to actions `[B, T, A]`, or to the first `length` of them alone, at less cost."""
        chex.assert_shape(indices, (None, self.tokens))
        return self._decode_codes(fsq.indices_to_codes(indices, self.levels), True, length)

    def decode_digits(self, digits: jax.Array, *, length: int | None = None) -> jax.Array:
        """Digits `[B, K, len(levels)]`, real numbers, to the first `length` actions; differentiable."""
        chex.assert_shape(digits, (None, self.tokens, len(self.levels)))
        return self._decode_codes(fsq.digits_to_codes(digits, self.levels), True, length)

    def _encode_codes(self, actions: jax.Array, deterministic: bool) -> jax.Array:
        return fsq.quantize(self._latent(actions, deterministic), self.levels)

    def _latent(self, actions: jax.Array, deterministic: bool) -> jax.Array:
        chex.assert_shape(actions, (None, self.chunk_length, self.action_dim))
        x = self.action_proj(actions)
        for block in self.conv_blocks:
            x = block(x)
        x = x + positional_encoding(self.tokens, self.width)
        for layer in self.encoder:
            x = layer(x, causal=True, deterministic=deterministic)
        return self.project_in(x)

    def _decode_codes(self, codes: jax.Array, deterministic: bool, length: int | None = None) -> jax.Array:
        memory = self.project_out(codes)
        # Attention among the queries is causal: the first actions do not depend on how many follow.
        queries = positional_encoding(self.chunk_length, self.width)[:length]
        # The queries are the same for every chunk, so the first layer's self-attention is too, unless dropout differs.
        rows = 1 if deterministic or self.dropout == 0.0 else codes.shape[0]
        x = jnp.broadcast_to(queries, (rows, *queries.shape))
        for layer in self.decoder:
            x = layer(x, memory, deterministic=deterministic)
        return self.action_head(jnp.broadcast_to(x, (codes.shape[0], *queries.shape)))

    def _check_fields(self) -> None:
        if len(self.kernels) != len(self.strides):
            raise ValueError(f"kernels {self.kernels} and strides {self.strides} must have the same length")
        if self.chunk_length % math.prod(self.strides):
            raise ValueError(f"chunk_length {self.chunk_length} must be a multiple of prod(strides) {self.strides}")
        if self.width % _GROUPS:
            raise ValueError(f"width {self.width} must be a multiple of {_GROUPS}, the groups of GroupNorm")

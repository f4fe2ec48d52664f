"""An action autoencoder whose tokens go from coarse to fine: each group of them codes what those before left over.

Not the published architecture. An FSQ digit has few levels, so precision takes several digits for one number: coarse
ones and then, within their steps, fine ones. A network trained through the rounding does not find that by itself; here
it is built in, as in residual vector quantisation, with finite scalar quantisation in the place of codebooks.

Letters: B batch, T chunk length, A action dimension, K tokens, L digits of a token, k tokens of a group.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from cso_jax import fsq
from cso_jax.networks.transformer import Linear, gelu

# (real digits [B, k, L] of a group, the number of its first token) -> the digits it is given
Choice = Callable[[jax.Array, int], jax.Array]


def nearest(real: jax.Array, first: int) -> jax.Array:
    """The choice of the nearest levels; the gradient passes straight through."""
    del first
    return real + jax.lax.stop_gradient(jnp.round(real) - real)


class _Wide(nn.Module):
    """A linear map, and beside it one through a hidden layer that starts at zero."""

    hidden: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        around = Linear(self.features, zero_kernel=True, zero_bias=True, name="out")
        return Linear(self.features, name="linear")(x) + around(gelu(Linear(self.hidden, name="hidden")(x)))


class ResidualAutoencoder(nn.Module):
    """Quantised autoencoder of action chunks `[B, T, A]` with K tokens in groups of equal size.

    A group's encoder reads the chunk less the sum of what the groups before it decode to; a chunk is the sum of all.
    With one group it is a plain network with a hidden layer on either side of the quantiser.
    """

    action_dim: int
    chunk_length: int = 32
    tokens: int = 8
    groups: int = 2
    hidden: int = 256
    levels: tuple[int, ...] = (8, 5, 5, 5)

    @property
    def vocabulary(self) -> int:
        """Number of distinct tokens."""
        return fsq.codebook_size(self.levels)

    def setup(self):
        if self.tokens % self.groups:
            raise ValueError(f"{self.tokens} tokens do not fall into {self.groups} groups of one size")
        size = self.tokens // self.groups * len(self.levels)
        self.encoders = [_Wide(self.hidden, size) for _ in range(self.groups)]
        self.decoders = [_Wide(self.hidden, self.chunk_length * self.action_dim) for _ in range(self.groups)]

    def __call__(self, actions: jax.Array, *, deterministic: bool = True) -> tuple[jax.Array, jax.Array]:
        """Actions `[B, T, A]` to (reconstruction `[B, T, A]`, indices `[B, K]` int32).

        Gradients pass the quantiser straight through. There is no dropout.
        """
        del deterministic
        digits, _ = self.walk(actions, nearest)
        return self.decode_digits(digits), fsq.digits_to_indices(digits, self.levels)

    def encode(self, actions: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Actions `[B, T, A]` to skill tokens `[B, K]` int32."""
        return self(actions, deterministic=deterministic)[1]

    def real_digits(self, actions: jax.Array, tokens: jax.Array) -> jax.Array:
        """The digits `[B, K, L]`, before rounding, that each token should have after the tokens `[B, K]` before it."""
        chex.assert_shape(tokens, (actions.shape[0], self.tokens))
        given = fsq.indices_to_digits(tokens, self.levels).astype(jnp.float32)
        return self.walk(actions, lambda real, first: given[:, first : first + real.shape[1]])[1]

    def walk(self, actions: jax.Array, choose: Choice) -> tuple[jax.Array, jax.Array]:
        """The digits `[B, K, L]` that `choose` gives group after group, and the real ones that it was given."""
        chex.assert_shape(actions, (None, self.chunk_length, self.action_dim))
        rest = actions.reshape(-1, self.chunk_length * self.action_dim)
        chosen, asked = [], []
        for group, encoder in enumerate(self.encoders):
            latent = encoder(rest).reshape(-1, self.tokens // self.groups, len(self.levels))
            asked.append(fsq.real_digits(latent, self.levels))
            chosen.append(choose(asked[-1], group * latent.shape[1]))
            if group + 1 < self.groups:
                rest = rest - self._part(group, chosen[-1])
        return jnp.concatenate(chosen, axis=1), jnp.concatenate(asked, axis=1)

    def decode(self, indices: jax.Array, *, length: int | None = None) -> jax.Array:
        """Skill tokens `[B, K]` to actions `[B, T, A]`, or to the first `length` of them."""
        chex.assert_shape(indices, (None, self.tokens))
        return self.decode_digits(fsq.indices_to_digits(indices, self.levels), length=length)

    def decode_digits(self, digits: jax.Array, *, length: int | None = None) -> jax.Array:
        """Digits `[B, K, L]`, real numbers, to the first `length` actions; differentiable."""
        chex.assert_shape(digits, (None, self.tokens, len(self.levels)))
        parts = jnp.split(digits, self.groups, axis=1)
        flat = jnp.sum(jnp.stack([self._part(group, part) for group, part in enumerate(parts)]), axis=0)
        return flat.reshape(-1, self.chunk_length, self.action_dim)[:, :length]

    def _part(self, group: int, digits: jax.Array) -> jax.Array:
        """What the digits `[B, k, L]` of a group add to the chunk, `[B, T * A]`."""
        codes = fsq.digits_to_codes(digits, self.levels)
        return self.decoders[group](codes.reshape(-1, self.tokens // self.groups * len(self.levels)))

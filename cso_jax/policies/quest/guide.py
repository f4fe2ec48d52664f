"""The guide of a skill prior: behaviour cloning from the context, a chunk instead of a skill.

Letters: B rows, C context tokens, D width, K tokens per skill, T actions per chunk, A action size.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from cso_jax.networks.transformer import Linear, gelu


class Guide(nn.Module):
    """Context `[B, C, D]` to the chunk `[B, T, A]` that a regression would execute."""

    hidden: tuple[int, ...]
    chunk_length: int
    action_dim: int

    @nn.compact
    def __call__(self, context: jax.Array) -> jax.Array:
        chex.assert_rank(context, 3)
        x = context.reshape(context.shape[0], -1)
        for number, size in enumerate(self.hidden):
            x = gelu(Linear(size, name=f"hidden_{number}")(x))
        chunk = Linear(self.chunk_length * self.action_dim, name="chunk")(x)
        return chunk.reshape(-1, self.chunk_length, self.action_dim)


def draw_digits(digits: jax.Array, key: chex.PRNGKey, *, sharpness: float, levels: Sequence[int]) -> jax.Array:
    """Digits `[B, K, len(levels)]` drawn around real ones, as the prior draws before it has learned anything itself.

    Every level by itself, from softmax(-`sharpness` * (j - digit)^2) over j. The gradient passes straight through.
    """
    chex.assert_axis_dimension(digits, -1, len(levels))
    drawn = [
        jax.random.categorical(level_key, -sharpness * (jnp.arange(level) - digits[..., i, None]) ** 2)
        for i, (level, level_key) in enumerate(zip(levels, jax.random.split(key, len(levels)), strict=True))
    ]
    return digits + jax.lax.stop_gradient(jnp.stack(drawn, axis=-1) - digits)

"""The guide of a skill prior: behaviour cloning from the context, a chunk instead of a skill.

Letters: B rows, C context tokens, D width, T actions per chunk, A action size.
"""

import chex
import jax
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

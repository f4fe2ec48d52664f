"""Value head: what success to expect from a decision, read off the frozen context of the policy (paper, Table 10).

Letters: S decisions, C context tokens, D width.
"""

import chex
import jax
from flax import linen as nn

from cso_jax.networks.transformer import Linear, gelu, layer_norm


class ValueHead(nn.Module):
    """Contexts `[S, C, D]` to values `[S]` float32: LayerNorm, then an MLP over all context tokens together.

    The last layer starts at zero, so that an unfitted head says 0 everywhere instead of something at random.
    """

    hidden: tuple[int, ...] = (256, 256)

    @nn.compact
    def __call__(self, context: jax.Array) -> jax.Array:
        chex.assert_rank(context, 3)
        x = layer_norm("norm")(context.reshape(context.shape[0], -1))
        for number, width in enumerate(self.hidden):
            x = gelu(Linear(width, name=f"hidden_{number}")(x))
        return nn.Dense(1, kernel_init=nn.initializers.zeros, name="value")(x)[:, 0]

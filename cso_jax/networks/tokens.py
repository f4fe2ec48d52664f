"""Observations as one token per input, for policies whose transformer sees cameras and states apart.

Letters: B batch, N observations of a history, I inputs, P size of a low-dimensional input, D width.
"""

from collections.abc import Mapping
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from cso_jax.networks.observation import LowdimEncoder
from cso_jax.networks.transformer import Linear
from cso_jax.networks.vision import ImageEncoder, Norm, Trunk


class InputTokens(nn.Module):
    """Normalised observations to `[B, I, width]`, or `[B, N, I, width]` with a history: cameras, then states.

    `lowdim` is a tuple of (key, P), `images` of (key, (H, W, 3)). With `history` N > 1 every entry is `[B, N, ...]`.
    """

    width: int
    lowdim: tuple[tuple[str, int], ...]
    images: tuple[tuple[str, tuple[int, int, int]], ...]
    history: int = 1
    image_width: int = 256
    lowdim_hidden: tuple[int, ...] = ()
    norm: Norm = "batch"
    trunk: Trunk = "resnet"

    @nn.compact
    def __call__(self, observation: Mapping[str, jax.Array], *, train: bool) -> jax.Array:
        """With `norm="batch"` and `train`, "batch_stats" must be mutable to be updated."""
        tokens = []
        for key, shape in self.images:
            frames = self._frames(observation[key], shape)
            encoded = ImageEncoder(self.image_width, self.norm, self.trunk, name=f"image_{key}")(
                frames.astype(jnp.float32) / 255.0, train=train
            )
            tokens.append(Linear(self.width, name=f"from_{key}")(encoded))
        for key, size in self.lowdim:
            values = self._frames(observation[key], (size,))
            tokens.append(LowdimEncoder(self.width, self.lowdim_hidden, name=f"lowdim_{key}")(values))
        if not tokens:
            raise ValueError("a policy needs at least one image or low-dimensional input")
        stacked = jnp.stack(tokens, axis=1)
        if self.history == 1:
            return stacked
        return stacked.reshape(-1, self.history, len(tokens), self.width)

    def _frames(self, value: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """All frames of an entry as rows, `[B * N, *shape]`."""
        steps = (None,) if self.history == 1 else (None, self.history)
        chex.assert_shape(value, (*steps, *shape))
        return value.reshape(-1, *shape)


class TaskToken(nn.Module):
    """The task as `[B, width]`: a row of a table for ids `[B]`, a Linear for vectors `[B, task_dim]`."""

    width: int
    task_dim: int
    task_kind: Literal["id", "vector"]

    @nn.compact
    def __call__(self, task: jax.Array) -> jax.Array:
        if self.task_kind == "vector":
            chex.assert_shape(task, (None, self.task_dim))
            return Linear(self.width, name="projection")(task)
        chex.assert_rank(task, 1)
        table = self.param("table", nn.initializers.normal(1.0), (self.task_dim, self.width))
        return table[task]

"""Observation encoder: an observation dictionary to the two context tokens of the skill prior (paper section E.1).

The task token is a Linear of the task embedding (or one row of a table for a task id); the observation token is a
Linear of all encoded cameras and low-dimensional inputs, concatenated. Letters: B batch, P size of a low-dimensional
input, E task embedding size, D context width.
"""

from collections.abc import Mapping
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from cso_jax.networks.transformer import Linear, gelu
from cso_jax.networks.vision import ImageEncoder, Norm, Trunk


class LowdimEncoder(nn.Module):
    """`[B, P] -> [B, width]`: a single Linear, or an MLP with GELU when `hidden` is not empty."""

    width: int
    hidden: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, size in enumerate(self.hidden):
            x = gelu(Linear(size, name=f"hidden_{i}")(x))
        return Linear(self.width, name="projection")(x)


class ObservationEncoder(nn.Module):
    """Observation dictionary to context `[B, 2, width]`: (task token, observation token), history of one step.

    `lowdim` is a tuple of (key, P) and `images` a tuple of (key, (H, W, 3)), tuples so that the module is hashable.
    The observation has float32 `[B, P]` or uint8 `[B, H, W, 3]` under those keys, and under "task" int32 `[B]` ids
    below `task_dim` (`task_kind` "id") or float32 `[B, task_dim]` vectors ("vector"). With `task_in_lowdim` the
    one-hot id or the vector also joins every low-dimensional input, so that an MLP there can depend on the task; with
    `lowdim_together` all of them go through one encoder instead of one each, so that an MLP there can relate them.
    """

    width: int
    lowdim: tuple[tuple[str, int], ...] = ()
    images: tuple[tuple[str, tuple[int, int, int]], ...] = ()
    task_dim: int = 1
    task_kind: Literal["id", "vector"] = "id"
    image_width: int = 256
    lowdim_width: int = 128
    lowdim_hidden: tuple[int, ...] = ()
    task_in_lowdim: bool = False
    lowdim_together: bool = False
    norm: Norm = "batch"
    trunk: Trunk = "resnet"

    @nn.compact
    def __call__(self, observation: Mapping[str, jax.Array], *, train: bool) -> jax.Array:
        """Encodes the observation. With `norm="batch"` and `train`, "batch_stats" must be mutable to be updated."""
        self._check(observation)
        task = observation["task"]
        encoded = []
        for key, _ in self.images:
            pixels = observation[key].astype(jnp.float32) / 255.0
            encoded.append(
                ImageEncoder(self.image_width, self.norm, self.trunk, name=f"image_{key}")(pixels, train=train)
            )
        keys = [key for key, _ in self.lowdim]
        for group in [keys] if self.lowdim_together and keys else [[key] for key in keys]:
            read = [observation[key] for key in group]
            x = jnp.concatenate([*read, self._task_features(task)] if self.task_in_lowdim else read, axis=-1)
            encoded.append(LowdimEncoder(self.lowdim_width, self.lowdim_hidden, name=f"lowdim_{'_'.join(group)}")(x))
        observation_token = Linear(self.width, name="obs_proj")(jnp.concatenate(encoded, axis=-1))
        return jnp.stack([self._task_token(task), observation_token], axis=1)

    def _task_token(self, task: jax.Array) -> jax.Array:
        if self.task_kind == "vector":
            return Linear(self.width, name="task_encoder")(task)
        table = self.param("task_table", nn.initializers.normal(1.0), (self.task_dim, self.width))
        return table[task]

    def _task_features(self, task: jax.Array) -> jax.Array:
        return task if self.task_kind == "vector" else jax.nn.one_hot(task, self.task_dim)

    def _check(self, observation: Mapping[str, jax.Array]) -> None:
        expected = {key for key, _ in (*self.images, *self.lowdim)}
        if not expected:
            raise ValueError("ObservationEncoder needs at least one image or low-dimensional input")
        missing = sorted((expected | {"task"}) - set(observation))
        if missing:
            raise ValueError(f"observation lacks {missing}; it has {sorted(observation)}")
        if self.task_kind not in ("id", "vector"):
            raise ValueError(f'task_kind must be "id" or "vector", got {self.task_kind!r}')
        task = observation["task"]
        batch = task.shape[0]
        chex.assert_shape(task, (batch,) if self.task_kind == "id" else (batch, self.task_dim))
        chex.assert_type(task, int if self.task_kind == "id" else float)
        for key, size in self.lowdim:
            chex.assert_shape(observation[key], (batch, size))
            chex.assert_type(observation[key], float)
        for key, shape in self.images:
            chex.assert_shape(observation[key], (batch, *shape))
            chex.assert_type(observation[key], jnp.uint8)

"""The conditional 1-D U-Net of Diffusion Policy (Chi et al. 2023, `ConditionalUnet1D`): convolutions over time.

Convolutions are products of rows that hold a window each: XLA's own, and above all their gradients, take many times as
long on a CPU.

Letters: B batch, T time (a multiple of 2 for every level but the last), A channels in and out, G size of the condition.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cso_jax.networks.transformer import Linear, torch_kernel_init


def step_embedding(steps: jax.Array, width: int) -> jax.Array:
    """Sinusoids `[B, width]` of numbers `[B]`: sines, then cosines, of frequencies 1 to 1e-4 in geometric steps."""
    half = width // 2
    frequency = jnp.asarray(np.exp(-np.log(10_000) * np.arange(half) / (half - 1)), jnp.float32)
    angle = steps[:, None].astype(jnp.float32) * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class _Convolution(nn.Module):
    """Every `stride`-th window of `kernel` steps, zeros beyond the ends: `[B, T, C] -> [B, T / stride, features]`."""

    features: int
    kernel: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        length, side = x.shape[1], self.kernel // 2
        padded = jnp.pad(x, ((0, 0), (side, side), (0, 0)))
        windows = [padded[:, start : start + length : self.stride] for start in range(self.kernel)]
        return Linear(self.features, name="linear")(jnp.concatenate(windows, axis=-1))


class _Growth(nn.Module):
    """The transposed convolution of four taps and stride two: `[B, T, C] -> [B, 2 T, features]`.

    Step 2t is made of steps t - 1 and t, step 2t + 1 of t and t + 1.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        before = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        after = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))[:, 1:]
        kernel = self.param("kernel", torch_kernel_init, (4 * x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        even, odd = jnp.split(kernel, 2)
        steps = [jnp.concatenate([before, x], axis=-1) @ even, jnp.concatenate([x, after], axis=-1) @ odd]
        return jnp.stack(steps, axis=2).reshape(x.shape[0], 2 * x.shape[1], self.features) + bias


class _Block(nn.Module):
    """Convolution, group normalisation, Mish: `[B, T, C] -> [B, T, features]`."""

    features: int
    kernel: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = _Convolution(self.features, self.kernel, name="conv")(x)
        x = nn.GroupNorm(num_groups=self.groups, epsilon=1e-5, use_fast_variance=False, name="norm")(x)
        return jax.nn.mish(x)


class _Residual(nn.Module):
    """Two blocks and a shortcut; the condition `[B, G]` scales and shifts what the first one gives (FiLM)."""

    features: int
    kernel: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        y = _Block(self.features, self.kernel, self.groups, name="block_1")(x)
        film = Linear(2 * self.features, name="film")(jax.nn.mish(condition))
        scale, shift = jnp.split(film[:, None], 2, axis=-1)
        y = _Block(self.features, self.kernel, self.groups, name="block_2")(scale * y + shift)
        if x.shape[-1] != self.features:
            x = Linear(self.features, name="shortcut")(x)
        return x + y


class UNet1D(nn.Module):
    """`[B, T, A]`, steps `[B]` and a condition `[B, G]` to `[B, T, A]`; a level per entry of `widths`."""

    widths: tuple[int, ...]
    kernel: int = 3
    groups: int = 8
    step_width: int = 256

    @nn.compact
    def __call__(self, x: jax.Array, steps: jax.Array, condition: jax.Array) -> jax.Array:
        chex.assert_rank([x, steps, condition], [3, 1, 2])
        channels = x.shape[-1]
        sizes = (self.kernel, self.groups)
        time = Linear(4 * self.step_width, name="step_1")(step_embedding(steps, self.step_width))
        time = Linear(self.step_width, name="step_2")(jax.nn.mish(time))
        given = jnp.concatenate([time, condition], axis=-1)
        skipped = []
        for level, width in enumerate(self.widths):
            x = _Residual(width, *sizes, name=f"down_{level}_1")(x, given)
            x = _Residual(width, *sizes, name=f"down_{level}_2")(x, given)
            skipped.append(x)
            if level < len(self.widths) - 1:
                x = _Convolution(width, 3, 2, name=f"shrink_{level}")(x)
        for number in (1, 2):
            x = _Residual(self.widths[-1], *sizes, name=f"middle_{number}")(x, given)
        for level, width in reversed(list(enumerate(self.widths[:-1]))):
            x = jnp.concatenate([x, skipped[level + 1]], axis=-1)
            x = _Residual(width, *sizes, name=f"up_{level}_1")(x, given)
            x = _Residual(width, *sizes, name=f"up_{level}_2")(x, given)
            x = _Growth(width, name=f"grow_{level}")(x)
        x = _Block(self.widths[0], *sizes, name="last")(x)
        return Linear(channels, name="out")(x)

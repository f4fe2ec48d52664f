"""Image trunk of the policy: the first layers of a ResNet-18, spatial softmax, one Linear (paper section E.1).

Images go in as float32 `[B, H, W, 3]` in [0, 1], channels last; H and W should be multiples of 8. The trunk (stem,
layer1, layer2 of ResNet-18) shrinks them eightfold to 128 channels. A small one is there for CPUs.
"""

from functools import partial, reduce
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from cso_jax.networks.transformer import Linear, torch_bias_init, torch_kernel_init

Norm = Literal["batch", "group"]
Trunk = Literal["resnet", "small"]

# He initialisation by fan-out, torchvision's choice for ResNets.
_resnet_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class BatchNorm(nn.Module):
    """Batch normalisation with torch's conventions: momentum 0.1, eps 1e-5, *unbiased* variance in the running mean.

    flax's own BatchNorm keeps the biased variance. Running statistics live in the "batch_stats" collection and are
    updated when `train` is true and the collection is mutable.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        if not train:
            mean, var = running_mean.value, running_var.value
        else:
            axes = tuple(range(x.ndim - 1))
            mean, var = jnp.mean(x, axes), jnp.var(x, axes)
            if not self.is_initializing() and self.is_mutable_collection("batch_stats"):
                count = x.size // channels
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = 0.9 * running_mean.value + 0.1 * mean
                running_var.value = 0.9 * running_var.value + 0.1 * unbiased
        return (x - mean) * (jax.lax.rsqrt(var + 1e-5) * scale) + bias


class GroupNorm(nn.Module):
    """The batch-independent alternative: groups of 16 channels, same call as `BatchNorm`."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        return nn.GroupNorm(num_groups=None, group_size=16, epsilon=1e-5, use_fast_variance=False, name="norm")(x)


def make_norm(norm: Norm, name: str) -> BatchNorm | GroupNorm:
    """The normalisation layer called `norm`."""
    if norm not in ("batch", "group"):
        raise ValueError(f'norm must be "batch" or "group", got {norm!r}')
    return BatchNorm(name=name) if norm == "batch" else GroupNorm(name=name)


def _conv(features: int, size: int, stride: int, name: str, *, bias: bool = False) -> nn.Conv:
    # Explicit padding: "SAME" pads strided convolutions differently from torch.
    padding = ((size // 2, size // 2),) * 2
    return nn.Conv(
        features, (size, size), (stride, stride), padding, use_bias=bias, kernel_init=_resnet_init, name=name
    )


class BasicBlock(nn.Module):
    """ResNet basic block: two 3x3 convolutions and a shortcut, `[B, H, W, C] -> [B, H/s, W/s, features]`."""

    features: int
    stride: int = 1
    norm: Norm = "batch"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = partial(make_norm, self.norm)
        y = _conv(self.features, 3, self.stride, "conv1")(x)
        y = jax.nn.relu(norm(name="bn1")(y, train=train))
        y = _conv(self.features, 3, 1, "conv2")(y)
        y = norm(name="bn2")(y, train=train)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = _conv(self.features, 1, self.stride, "downsample_conv")(x)
            x = norm(name="downsample_bn")(x, train=train)
        return jax.nn.relu(x + y)


def max_pool(x: jax.Array) -> jax.Array:
    """Maximum over 3x3 windows, stride 2, padding 1: `[B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C]`.

    As maxima of shifted slices, whose gradient XLA computes six times faster on a CPU than that of a window reduction.
    Where values tie, the gradient is shared; after the ReLU before it, ties are at zero, where nothing flows back.
    """
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    rows = reduce(jnp.maximum, [padded[:, i : i + height : 2] for i in range(3)])
    return reduce(jnp.maximum, [rows[:, :, j : j + width : 2] for j in range(3)])


class ResNetTrunk(nn.Module):
    """Stem, layer1 and layer2 of ResNet-18: `[B, H, W, 3] -> [B, H/8, W/8, 128]`."""

    norm: Norm = "batch"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        chex.assert_shape(x, (None, None, None, 3))
        x = _conv(64, 7, 2, "conv1")(x)
        x = jax.nn.relu(make_norm(self.norm, "bn1")(x, train=train))
        x = max_pool(x)
        x = BasicBlock(64, 1, self.norm, name="block_1")(x, train=train)
        x = BasicBlock(64, 1, self.norm, name="block_2")(x, train=train)
        x = BasicBlock(128, 2, self.norm, name="block_3")(x, train=train)
        return BasicBlock(128, 1, self.norm, name="block_4")(x, train=train)


class SmallTrunk(nn.Module):
    """Four convolutions for small images on a CPU: `[B, H, W, 3] -> [B, H/4, W/4, 32]`.

    A twelfth of the time of `ResNetTrunk`. Without normalisation, so a batch has no say in any of its images.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train
        chex.assert_shape(x, (None, None, None, 3))
        x -= 0.5
        for number, (features, size, stride) in enumerate(((16, 5, 2), (32, 3, 2), (32, 3, 1), (32, 3, 1))):
            x = jax.nn.relu(_conv(features, size, stride, f"conv{number + 1}", bias=True)(x))
        return x


def make_trunk(trunk: Trunk, norm: Norm) -> ResNetTrunk | SmallTrunk:
    """The trunk called `trunk`; the small one has no `norm`."""
    if trunk not in ("resnet", "small"):
        raise ValueError(f'trunk must be "resnet" or "small", got {trunk!r}')
    return ResNetTrunk(norm, name="trunk") if trunk == "resnet" else SmallTrunk(name="trunk")


def spatial_softmax(maps: jax.Array) -> jax.Array:
    """Expected image coordinates of each map: `[B, H, W, C] -> [B, 2C]`, all first coordinates, then all second.

    Coordinates run over [-1, 1]. The first varies along rows and the second along columns, as in the published
    policies (which call them x and y).
    """
    batch, height, width, channels = maps.shape
    attention = jax.nn.softmax(maps.reshape(batch, height * width, channels), axis=1)
    rows, columns = jnp.meshgrid(jnp.linspace(-1, 1, height), jnp.linspace(-1, 1, width), indexing="ij")
    first = jnp.sum(attention * rows.reshape(1, -1, 1), axis=1)
    second = jnp.sum(attention * columns.reshape(1, -1, 1), axis=1)
    return jnp.concatenate([first, second], axis=-1)


class SpatialConv(nn.Module):
    """1x1 convolution to `features` maps, which the published model skips when the number of maps stays the same.

    Its parameters exist all the same: checkpoints of that model carry them, untrained.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        kernel = self.param("kernel", torch_kernel_init, (channels, self.features))
        bias = self.param("bias", torch_bias_init(channels), (self.features,))
        return x if channels == self.features else x @ kernel + bias


class ImageEncoder(nn.Module):
    """Images `[B, H, W, 3]` float32 in [0, 1] to `[B, width]`: trunk, `width // 2` keypoints, Linear."""

    width: int = 256
    norm: Norm = "batch"
    trunk: Trunk = "resnet"

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        maps = make_trunk(self.trunk, self.norm)(images, train=train)
        maps = SpatialConv(self.width // 2, name="spatial_conv")(maps)
        return Linear(self.width, name="projection")(spatial_softmax(maps))

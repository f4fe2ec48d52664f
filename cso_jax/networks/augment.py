"""Augmentation: of images as QueST trains, colour jitter, then a random shift by up to two pixels; of action chunks.

Works on uint8 images `[B, H, W, 3]` of one camera and follows torchvision's ColorJitter on uint8 tensors, whose
operations each truncate to integers. One draw of the jitter serves the whole batch (so that batch statistics vary
between batches); keeping a sample plain, and the shift, are drawn per sample.
"""

import chex
import jax
import jax.numpy as jnp

_LUMA = (0.2989, 0.587, 0.114)


def augment(
    key: chex.PRNGKey, images: jax.Array, *, strength: float = 0.3, keep_plain: float = 0.1, padding: int = 2
) -> jax.Array:
    """Jitters and shifts `images [B, H, W, 3]` uint8; fold the camera's number into `key` for independent draws."""
    chex.assert_shape(images, (None, None, None, 3))
    chex.assert_type(images, jnp.uint8)
    jitter_key, plain_key, shift_key = jax.random.split(key, 3)
    plain = jax.random.bernoulli(plain_key, keep_plain, (images.shape[0], 1, 1, 1))
    images = jnp.where(plain, images, color_jitter(jitter_key, images, strength=strength))
    return random_shift(shift_key, images, padding=padding)


def mix_dimensions(key: chex.PRNGKey, chunks: jax.Array, *, share: float) -> jax.Array:
    """A `share` of the chunks `[B, T, A]` put together of dimensions that come from A different chunks of the batch.

    Every dimension keeps the course that it has in some demonstration, and the combinations are many more than the
    demonstrations: a policy also acts where none of them went.
    """
    chex.assert_rank(chunks, 3)
    batch, _, dimensions = chunks.shape
    chosen_key, order_key = jax.random.split(key)
    order = jax.vmap(lambda one: jax.random.permutation(one, batch))(jax.random.split(order_key, dimensions))
    mixed = jnp.take_along_axis(chunks, order.T[:, None, :], axis=0)
    return jnp.where(jax.random.bernoulli(chosen_key, share, (batch, 1, 1)), mixed, chunks)


def color_jitter(key: chex.PRNGKey, images: jax.Array, *, strength: float = 0.3) -> jax.Array:
    """Brightness, contrast, saturation (factors 1 -+ strength) and hue (-+ strength turns), in random order."""
    order_key, factor_key, hue_key = jax.random.split(key, 3)
    factors = jax.random.uniform(factor_key, (3,), minval=1 - strength, maxval=1 + strength)
    turn = jax.random.uniform(hue_key, (), minval=-strength, maxval=strength)
    operations = (
        lambda x: adjust_brightness(x, factors[0]),
        lambda x: adjust_contrast(x, factors[1]),
        lambda x: adjust_saturation(x, factors[2]),
        lambda x: adjust_hue(x, turn),
    )
    order = jax.random.permutation(order_key, len(operations))
    x = images.astype(jnp.float32)
    x = jax.lax.fori_loop(0, len(operations), lambda i, x: jax.lax.switch(order[i], operations, x), x)
    return x.astype(jnp.uint8)


def adjust_brightness(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Scales towards black. Like the other adjustments: integers in float32 `[B, H, W, 3]`, 0..255, in and out."""
    return _truncate(x * factor)


def adjust_contrast(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the mean grey of each image."""
    mean = jnp.mean(_grey(x), axis=(1, 2, 3), keepdims=True)
    return _truncate(x * factor + mean * (1 - factor))


def adjust_saturation(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the grey image."""
    return _truncate(x * factor + _grey(x) * (1 - factor))


def adjust_hue(x: jax.Array, turn: jax.Array) -> jax.Array:
    """Rotates the hue by `turn` of a full circle, through HSV."""
    hue, saturation, value = _rgb_to_hsv(x / 255.0)
    rgb = _hsv_to_rgb((hue + turn) % 1.0, saturation, value)
    return jnp.floor(jnp.clip(rgb, 0.0, 1.0) * 255.999)


def random_shift(key: chex.PRNGKey, images: jax.Array, *, padding: int = 2) -> jax.Array:
    """Replicate-pads by `padding` and crops back at a random offset 0 .. 2 * padding - 1 per sample and axis.

    The last offset (2 * padding) is never drawn, as in the published code.
    """
    batch, height, width, _ = images.shape
    offsets = jax.random.randint(key, (2, batch, 1), 0, 2 * padding)
    # Clamped indices equal replicate padding followed by a crop, without building the padded images.
    rows = jnp.clip(jnp.arange(height) + offsets[0] - padding, 0, height - 1)
    columns = jnp.clip(jnp.arange(width) + offsets[1] - padding, 0, width - 1)
    return jax.vmap(lambda image, r, c: image[r][:, c])(images, rows, columns)


def _truncate(x: jax.Array) -> jax.Array:
    return jnp.floor(jnp.clip(x, 0.0, 255.0))


def _grey(x: jax.Array) -> jax.Array:
    return jnp.floor(jnp.sum(x * jnp.asarray(_LUMA), axis=-1, keepdims=True))


def _rgb_to_hsv(rgb: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    high, low = jnp.max(rgb, axis=-1), jnp.min(rgb, axis=-1)
    spread = high - low
    saturation = spread / jnp.where(high == 0, 1.0, high)
    divisor = jnp.where(spread == 0, 1.0, spread)
    hue = jnp.where(
        high == red,
        (green - blue) / divisor,
        jnp.where(high == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    return (hue / 6.0) % 1.0, saturation, high


def _hsv_to_rgb(hue: jax.Array, saturation: jax.Array, value: jax.Array) -> jax.Array:
    # Each channel is the value less a trapezoid of the hue; n = 5, 3, 1 for red, green, blue.
    def channel(n: float) -> jax.Array:
        k = (n + hue * 6.0) % 6.0
        return value - value * saturation * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0)

    return jnp.stack([channel(5.0), channel(3.0), channel(1.0)], axis=-1)

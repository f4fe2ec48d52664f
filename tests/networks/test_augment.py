"""Image augmentation: hand-worked colours, hue against colorsys, shifts against padding and cropping."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np

from cso_jax.networks import augment


def pixels(shape=(4, 6, 5, 3), seed=0):
    return jax.random.randint(jax.random.key(seed), shape, 0, 256).astype(jnp.uint8)


def test_zero_strength_and_no_padding_change_nothing():
    images = pixels()
    np.testing.assert_array_equal(augment.color_jitter(jax.random.key(1), images, strength=0.0), images)
    np.testing.assert_array_equal(augment.random_shift(jax.random.key(1), pixels(), padding=0), images)


def test_hand_worked_adjustments():
    x = jnp.array([[[[200.0, 100.0, 0.0], [0.0, 0.0, 0.0]]]])  # grey 118 (of 118.48) and 0, mean 59
    np.testing.assert_array_equal(augment.adjust_brightness(x, 1.5)[0, 0], [[255, 150, 0], [0, 0, 0]])
    np.testing.assert_array_equal(augment.adjust_contrast(x, 0.5)[0, 0], [[129, 79, 29], [29, 29, 29]])
    np.testing.assert_array_equal(augment.adjust_saturation(x, 0.0)[0, 0], [[118, 118, 118], [0, 0, 0]])


def test_hue_matches_colorsys():
    images = pixels((1, 8, 8, 3))
    actual = np.asarray(augment.adjust_hue(images.astype(jnp.float32), 0.21))
    for rgb, got in zip(np.asarray(images).reshape(-1, 3), actual.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(rgb / 255.0))
        expected = np.array(colorsys.hsv_to_rgb((hue + 0.21) % 1.0, saturation, value)) * 255
        np.testing.assert_allclose(got, expected, atol=1.0)


def test_shift_is_pad_and_crop():
    images = np.asarray(pixels((40, 9, 7, 3)))
    shifted = np.asarray(augment.random_shift(jax.random.key(3), jnp.asarray(images), padding=2))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    seen = set()
    for before, after in zip(padded, shifted, strict=True):
        offsets = [(r, c) for r in range(5) for c in range(5) if np.array_equal(before[r : r + 9, c : c + 7], after)]
        assert len(offsets) == 1
        seen.add(offsets[0])
    assert {r for r, _ in seen} == {c for _, c in seen} == {0, 1, 2, 3}


def test_augment_is_keyed_and_keeps_some_samples_plain():
    images = pixels((200, 8, 8, 3))
    once = jax.jit(augment.augment)(jax.random.key(4), images)
    assert once.dtype == jnp.uint8 and once.shape == images.shape
    np.testing.assert_array_equal(once, jax.jit(augment.augment)(jax.random.key(4), images))
    assert jnp.any(once != jax.jit(augment.augment)(jax.random.key(5), images))
    unshifted = jax.jit(lambda key: augment.augment(key, images, padding=0))(jax.random.key(4))
    plain = np.asarray(jnp.all(unshifted == images, axis=(1, 2, 3))).mean()
    assert 0.03 < plain < 0.2


def test_mixed_chunks_take_each_dimension_from_some_chunk_and_use_all_of_them():
    chunks = jnp.arange(6.0)[:, None, None] + jnp.array([0.0, 10, 20]) + 100 * jnp.arange(4.0)[:, None]  # [6, 4, 3]
    mixed = augment.mix_dimensions(jax.random.key(0), chunks, share=1.0)
    for dimension in range(3):
        found = np.asarray(mixed[:, :, dimension])
        order = np.argsort(found[:, 0])
        np.testing.assert_array_equal(found[order], chunks[:, :, dimension])
    assert len({tuple(row) for row in np.asarray(mixed[:, 0] % 10)} & {(n, n, n) for n in range(6)}) < 6
    np.testing.assert_array_equal(augment.mix_dimensions(jax.random.key(0), chunks, share=0.0), chunks)

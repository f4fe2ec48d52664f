"""Image trunk and spatial softmax against numpy, batch statistics with torch's conventions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import networks_reference as reference

from cso_jax.networks import vision


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(jax.random.key(0), (3, 24, 16, 3))


def test_encoder_matches_the_numpy_reference(images):
    model = vision.ImageEncoder(width=32)
    variables = reference.init(model, images, train=True)
    params, stats = (reference.tree64(variables[k]) for k in ("params", "batch_stats"))
    pixels = np.asarray(images, np.float64)

    actual, updated = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(variables, images)
    expected, new_stats = reference.image_encoder(params, stats, pixels, train=True)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), updated["batch_stats"], new_stats)

    evaluated = jax.jit(lambda v, x: model.apply(v, x, train=False))(
        {"params": variables["params"], "batch_stats": updated["batch_stats"]}, images
    )
    expected, _ = reference.image_encoder(params, new_stats, pixels, train=False)
    np.testing.assert_allclose(evaluated, expected, atol=1e-4)


def test_spatial_convolution_is_skipped_when_it_would_keep_the_number_of_maps(images):
    same, fewer = vision.SpatialConv(3), vision.SpatialConv(2)
    variables = reference.init(same, images)  # the parameters exist, as in published checkpoints
    assert set(variables["params"]) == {"kernel", "bias"}
    np.testing.assert_array_equal(same.apply(variables, images), images)
    variables = reference.init(fewer, images)
    expected = reference.linear(reference.tree64(variables["params"]), np.asarray(images, np.float64))
    np.testing.assert_allclose(fewer.apply(variables, images), expected, atol=1e-5)


def test_running_variance_is_unbiased():
    x = jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1)
    model = vision.BatchNorm()
    variables = model.init(jax.random.key(0), x, train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], [0.0])  # initialising is not training
    y, updated = model.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.ravel(), [-1, 1], atol=1e-4)
    # mean 2, biased variance 1, unbiased 2.
    np.testing.assert_allclose(updated["batch_stats"]["mean"], [0.9 * 0 + 0.1 * 2], rtol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["var"], [0.9 * 1 + 0.1 * 2], rtol=1e-6)


def test_spatial_softmax_finds_a_peak():
    maps = jnp.zeros((1, 5, 3, 2)).at[0, 4, 1, 0].set(100.0).at[0, 0, 2, 1].set(100.0)
    # [row of map 0, row of map 1, column of map 0, column of map 1]
    np.testing.assert_allclose(vision.spatial_softmax(maps), [[1, -1, 0, 1]], atol=1e-6)


def test_group_norm_keeps_no_statistics_and_rows_apart(images):
    model = vision.ImageEncoder(width=32, norm="group")
    variables = reference.init(model, images, train=True)
    assert set(variables) == {"params"}
    apply = jax.jit(lambda x: model.apply(variables, x, train=True))
    np.testing.assert_allclose(apply(images)[:1], apply(images.at[1:].set(0.0))[:1], atol=1e-6)


def test_unknown_norm_is_refused(images):
    with pytest.raises(ValueError, match="norm"):
        vision.ImageEncoder(norm="layer").init(jax.random.key(1), images, train=True)


def test_the_small_trunk_sees_each_image_by_itself():
    model = vision.ImageEncoder(width=32, trunk="small")
    images = jax.random.uniform(jax.random.key(0), (3, 64, 64, 3))
    variables = model.init(jax.random.key(1), images, train=True)
    assert list(variables) == ["params"]
    maps = vision.SmallTrunk().apply({"params": variables["params"]["trunk"]}, images, train=True)
    assert maps.shape == (3, 16, 16, 32)
    together = model.apply(variables, images, train=True)
    assert together.shape == (3, 32)
    alone = model.apply(variables, images[1:2], train=False)
    np.testing.assert_allclose(alone[0], together[1], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3
    with pytest.raises(ValueError, match='trunk must be "resnet" or "small"'):
        vision.ImageEncoder(trunk="big").init(jax.random.key(1), images, train=True)

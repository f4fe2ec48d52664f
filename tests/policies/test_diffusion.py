"""Diffusion Policy: schedule and steps against hand-worked constants, what it reads, that it learns a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from support.policies import EMBEDDING, PIXELS, STATE, check_interface, config_of, decide, overfit, rows_of

from cso_jax import policies
from cso_jax.envs.protocol import EnvSpec
from cso_jax.networks import unet
from cso_jax.policies import diffusion
from cso_jax.policies.interface import Sampling

SMALL = {"chunk_length": 8, "widths": (16, 32), "condition": 16, "diffusion_steps": 20, "denoising_steps": 5}


@pytest.mark.parametrize(("spec", "embedding"), [(STATE, None), (PIXELS, EMBEDDING)], ids=["state", "pixels"])
def test_interface(spec, embedding):
    _, still = check_interface("diffusion", spec, embedding, **SMALL)
    assert still == []


def test_schedule_by_hand():
    # f(0) = cos^2(0.0079365 * pi / 2), f(1) = cos^2((0.5 + 0.008) / 1.008 * pi / 2); the last beta is cut to 0.999.
    half = np.cos(0.508 / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(diffusion.cosine_schedule(2), [half, half * 0.001], rtol=1e-9)
    np.testing.assert_array_equal(diffusion.denoising_order(100, 10), np.arange(90, -1, -10))


def test_a_step_by_hand():
    # abar 0.25: x = 0.5 x0 + sqrt(0.75) e with x0 = 0.4 and e = 2; to abar 0.64: 0.8 x0 + 0.6 e.
    x = jnp.full((1, 1, 1), 0.5 * 0.4 + 0.75**0.5 * 2)
    np.testing.assert_allclose(diffusion.ddim_step(x, 2.0, 0.25, 0.64, 1.0), [[[0.8 * 0.4 + 0.6 * 2]]], rtol=1e-6)
    # Clipped, x0 is 0.3; the last step goes to abar 1, the chunk itself.
    np.testing.assert_allclose(diffusion.ddim_step(x, 2.0, 0.25, 1.0, 0.3), [[[0.3]]], rtol=1e-6)
    np.testing.assert_allclose(diffusion.ddim_step(x, 2.0, 0.25, 1.0), [[[0.4]]], rtol=1e-6)


def test_convolutions_are_those_of_the_library():
    x = jax.random.normal(jax.random.key(0), (2, 6, 3))
    for stride in (1, 2):
        own = unet._Convolution(5, 3, stride)
        params = own.init(jax.random.key(1), x)["params"]["linear"]
        theirs = nn.Conv(5, (3,), (stride,), padding=1)
        kernel = params["kernel"].reshape(3, 3, 5)
        expected = theirs.apply({"params": {"kernel": kernel, "bias": params["bias"]}}, x)
        np.testing.assert_allclose(own.apply({"params": {"linear": params}}, x), expected, atol=1e-5)
    own = unet._Growth(5)
    params = own.init(jax.random.key(1), x)["params"]
    # Taps of the transposed convolution in the order of the library: the step it reaches furthest back first.
    taps = params["kernel"].reshape(4, 3, 5)
    kernel = jnp.stack([taps[0], taps[2], taps[1], taps[3]])
    theirs = nn.ConvTranspose(5, (4,), (2,), padding="SAME")
    expected = theirs.apply({"params": {"kernel": kernel, "bias": params["bias"]}}, x)
    np.testing.assert_allclose(own.apply({"params": params}, x), expected, atol=1e-5)


@pytest.mark.slow
def test_it_learns_a_batch_by_heart():
    policy, variables, rows, chunk, losses = overfit(
        "diffusion", 1000, learning_rate=5e-3, repeated=16, **SMALL, average_decay=0.9
    )
    assert np.mean(losses[-20:]) < 0.03 * losses[0]
    assert np.abs(decide(policy, variables, rows) - chunk[:, :4]).mean() < 0.05


def test_the_average_forgets_its_first_value_and_follows():
    config = config_of("diffusion", **SMALL, average_decay=0.5)
    policy = policies.build(config, STATE, 2)
    variables = policy.init(jax.random.key(0), STATE)
    batch = rows_of(STATE, policy) | {"chunk": np.zeros((6, 8, 2), np.float32)}

    def averaged(average, value):
        trainable = {"network": jax.tree.map(lambda leaf: jnp.full_like(leaf, value), variables["network"])}
        return policy.loss(trainable, variables | {"average": average}, batch, jax.random.key(0), augment_images=False)

    average = variables["average"]
    # Decays min(0.5, 1 - (1 + n)^-0.75) are 0, 0.4054 and 0.5 for n = 0, 1, 2.
    for value, expected in ((4.0, 4.0), (8.0, 4 + (1 - 0.405396) * 4), (0.0, 0.5 * (4 + (1 - 0.405396) * 4))):
        average = averaged(average, value).changed["average"]
        np.testing.assert_allclose(jax.tree.leaves(average["params"])[0].ravel()[0], expected, rtol=1e-5)


def test_draws_differ_by_episode_and_temperature_zero_has_none():
    policy = policies.build(config_of("diffusion", **SMALL), STATE, 2)
    variables = policy.init(jax.random.key(0), STATE)
    rows = rows_of(STATE, policy)
    first = decide(policy, variables, rows)
    np.testing.assert_array_equal(first, decide(policy, variables, rows))
    assert not np.allclose(first, decide(policy, variables, rows, seed=5))
    still = [decide(policy, variables, rows, seed=seed, sampling=Sampling(0.0, 0)) for seed in (0, 5)]
    np.testing.assert_array_equal(*still)


def test_size_of_the_published_network():
    """51.8 M parameters on LIBERO, 49.9 M of them the U-Net's."""
    spec = EnvSpec({"joints": 7, "hand": 3, "gripper": 2}, {"a": (128, 128, 3), "b": (128, 128, 3)}, 7)
    policy = policies.build(config_of("diffusion"), spec, 10, 512)
    shapes = jax.eval_shape(lambda: policy.init(jax.random.key(0), spec, np.zeros((10, 512), np.float32)))["network"]
    sizes = {part: sum(leaf.size for leaf in jax.tree.leaves(tree)) for part, tree in shapes.items()}
    assert 0.98 < sizes["unet"] / 49.9e6 < 1.02
    assert 0.97 < sum(sizes.values()) / 51.8e6 < 1.03


def test_values_that_do_not_go_together():
    assert "multiple of 4 for 3 widths" in policies.problems(config_of("diffusion", chunk_length=10))[0]
    assert "multiples of 8" in policies.problems(config_of("diffusion", widths=(20,)))[0]
    assert "denoising_steps must be 1 to" in policies.problems(config_of("diffusion", denoising_steps=101))[0]

"""The MDT-style policy: EDM's terms against hand-worked constants, what it reads, that it learns a batch by heart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.policies import EMBEDDING, PIXELS, STATE, check_interface, config_of, decide, overfit, rows_of

from cso_jax import policies
from cso_jax.networks.adaptive_norm import AdaptiveDecoderLayer
from cso_jax.policies import mdt
from cso_jax.policies.interface import Sampling

SMALL = {"chunk_length": 8, "width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 2, "denoising_steps": 5}


@pytest.mark.parametrize(
    ("spec", "embedding"),
    [(STATE, None), pytest.param(PIXELS, EMBEDDING, marks=pytest.mark.slow)],
    ids=["state", "pixels"],
)
def test_interface(spec, embedding):
    _, still = check_interface("mdt", spec, embedding, **SMALL)
    # The gates are zero at first, so nothing reaches what is behind them; a key's bias shifts all scores alike.
    gated = ("self_attn", "feed_forward", "norm1", "norm3", "size_1", "size_2")
    assert not [
        name for name in still if not ("layer_" in name or "size_" in name) or not any(g in name for g in gated)
    ]


def test_preconditioning_by_hand():
    # s = d = 0.5: c_skip 1/2, c_out 0.25 / sqrt(0.5), c_in 1 / sqrt(0.5); s = 2: 0.25 / 4.25, 1 / sqrt(4.25), the same.
    found = mdt.preconditioning(jnp.array([0.5, 2.0]), 0.5)
    expected = [[0.5, 0.25 / 4.25], [0.25 / 0.5**0.5, 4.25**-0.5], [0.5**-0.5, 4.25**-0.5]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_sizes_of_noise():
    np.testing.assert_allclose(mdt.denoising_sizes(0.01, 1.0, 3), [1.0, 0.1, 0.01, 0.0], rtol=1e-9)
    drawn = np.asarray(mdt.noise_sizes(jax.random.key(0), 20_000, 0.5, 0.001, 80.0))
    assert drawn.min() >= 0.001 and drawn.max() <= 80.0
    # A logistic variable's quartiles lie ln 3 times its scale about its middle.
    np.testing.assert_allclose(
        np.log(np.quantile(drawn, (0.25, 0.5, 0.75)) / 0.5), np.log(3) * np.array([-0.5, 0, 0.5]), atol=0.03
    )


def test_steps_by_hand():
    # Whatever was there, a step keeps s_j / s_i of what is not the chunk, and the last one ends at the chunk.
    x = jnp.full((1, 1, 1), 5.0)
    np.testing.assert_allclose(mdt.ddim_step(x, 0.3, 1.0, 0.1), [[[0.3 + 0.1 * 4.7]]], rtol=1e-6)
    np.testing.assert_allclose(mdt.ddim_step(x, 0.3, 0.1, 0.0), [[[0.3]]], rtol=1e-6)


def test_a_layer_begins_without_its_gated_parts():
    layer = AdaptiveDecoderLayer(8, 2, 0.0)
    x, memory, condition = (
        jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate([(2, 3, 8), (2, 4, 8), (2, 8)])
    )
    variables = layer.init(jax.random.key(3), x, memory, condition)
    found = layer.apply(variables, x, memory, condition)
    bound = layer.bind(variables)
    np.testing.assert_allclose(found, x + bound.cross_attn.cross(bound.norm2(x), memory, deterministic=True), atol=1e-6)
    # With gates open, a later action is still no news to an earlier one, and the condition counts.
    variables["params"]["modulation"] = {"kernel": jax.random.normal(jax.random.key(4), (8, 48)), "bias": jnp.ones(48)}
    found = layer.apply(variables, x, memory, condition)
    changed = layer.apply(variables, x.at[:, 2].add(1.0), memory, condition)
    np.testing.assert_array_equal(changed[:, :2], found[:, :2])
    assert not np.allclose(changed[:, 2], found[:, 2])
    assert not np.allclose(layer.apply(variables, x, memory, condition + 1.0), found)


@pytest.mark.slow
def test_it_learns_a_batch_by_heart():
    policy, variables, rows, chunk, losses = overfit(
        "mdt", 1000, learning_rate=3e-3, repeated=8, **{**SMALL, "width": 32, "dropout": 0.0, "average_decay": 0.9}
    )
    assert np.mean(losses[-20:]) < 0.2 * losses[0]
    assert np.abs(decide(policy, variables, rows) - chunk[:, :4]).mean() < 0.05


def test_draws_differ_by_episode_and_temperature_zero_has_none():
    policy = policies.build(config_of("mdt", **SMALL), STATE, 2)
    variables = policy.init(jax.random.key(0), STATE)
    rows = rows_of(STATE, policy)
    first = decide(policy, variables, rows)
    np.testing.assert_array_equal(first, decide(policy, variables, rows))
    assert not np.allclose(first, decide(policy, variables, rows, seed=5))
    still = [decide(policy, variables, rows, seed=seed, sampling=Sampling(0.0, 0)) for seed in (0, 5)]
    np.testing.assert_array_equal(*still)


def test_values_that_do_not_go_together():
    assert "twice the 8 heads" in policies.problems(config_of("mdt", width=40))[0]
    assert "sigma_min must lie between 0 and" in policies.problems(config_of("mdt", sigma_min=100.0))[0]
    assert "sigma_data must be above 0" in policies.problems(config_of("mdt", sigma_data=0.0))[0]
    assert "denoising_steps must be 2 or more" in policies.problems(config_of("mdt", denoising_steps=1))[0]
    assert "a chunk has 2" in policies.problems(config_of("mdt", chunk_length=2))[0]

"""The coarse-to-fine autoencoder: what a group codes is what those before it left over."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cso_jax import defaults, fsq, policies
from cso_jax.policies.quest.residual_autoencoder import ResidualAutoencoder

LEVELS = (4, 3)
ROWS, TOKENS, LENGTH, ACTIONS = 6, 4, 5, 2


def model_of(groups: int) -> ResidualAutoencoder:
    return ResidualAutoencoder(ACTIONS, LENGTH, TOKENS, groups, hidden=8, levels=LEVELS)


@pytest.fixture(params=[1, 2, 4])
def model(request):
    return model_of(request.param)


@pytest.fixture
def chunks():
    return jax.random.normal(jax.random.key(1), (ROWS, LENGTH, ACTIONS))


@pytest.fixture
def params(model, chunks):
    """Random everywhere: what starts at zero would hide a path that is not there."""
    zeros = model.init(jax.random.key(0), chunks)
    leaves, tree = jax.tree.flatten(zeros)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    return tree.unflatten([0.5 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)])


def test_it_gives_back_what_its_tokens_decode_to(model, params, chunks):
    reconstruction, tokens = model.apply(params, chunks)
    assert tokens.shape == (ROWS, TOKENS) and tokens.dtype == jnp.int32
    assert tokens.min() >= 0 and tokens.max() < model.vocabulary == 12
    np.testing.assert_array_equal(model.apply(params, chunks, method="encode"), tokens)
    np.testing.assert_allclose(model.apply(params, tokens, method="decode"), reconstruction, atol=1e-5)
    first = model.apply(params, tokens, length=2, method="decode")
    np.testing.assert_allclose(first, reconstruction[:, :2], atol=1e-5)


def test_after_its_own_tokens_the_real_digits_round_to_them(model, params, chunks):
    tokens = model.apply(params, chunks, method="encode")
    real = model.apply(params, chunks, tokens, method="real_digits")
    np.testing.assert_array_equal(fsq.digits_to_indices(real, LEVELS), tokens)


def test_a_group_codes_what_the_tokens_taken_before_it_left_over(chunks):
    """The second group of two, after any tokens of the first, is that of a chunk less what those decode to."""
    model = model_of(2)
    params = model.init(jax.random.key(0), chunks)
    tokens = jax.random.randint(jax.random.key(3), (ROWS, TOKENS), 0, model.vocabulary)
    real = model.apply(params, chunks, tokens, method="real_digits")
    codes = fsq.indices_to_codes(tokens[:, :2], LEVELS).reshape(ROWS, -1)
    after = chunks.reshape(ROWS, -1) - model.bind(params).decoders[0](codes)
    latent = model.bind(params).encoders[1](after).reshape(ROWS, 2, len(LEVELS))
    np.testing.assert_allclose(real[:, 2:], fsq.real_digits(latent, LEVELS), atol=1e-5)


@pytest.mark.parametrize("token", range(TOKENS))
def test_no_tokens_digits_depend_on_itself_or_on_later_ones(model, params, chunks, token):
    """What sampling one token after the other rests on."""
    tokens = jax.random.randint(jax.random.key(3), (ROWS, TOKENS), 0, model.vocabulary)
    other = tokens.at[:, token:].set((tokens[:, token:] + 5) % model.vocabulary)
    real, changed = (model.apply(params, chunks, taken, method="real_digits") for taken in (tokens, other))
    np.testing.assert_array_equal(real[:, token], changed[:, token])


def test_groups_come_closer_than_one_by_far():
    """As many bits, as many steps: of a chunk of one number, two groups see the half that one group cannot."""
    chunks = jax.random.uniform(jax.random.key(0), (256, 1, 1), minval=-1.0)

    def error(groups):
        model = ResidualAutoencoder(1, 1, tokens=2, groups=groups, hidden=8, levels=(5,))
        params = model.init(jax.random.key(1), chunks)
        optimiser = optax.adam(1e-2)

        @jax.jit
        def train(params):
            def step(carry, _):
                params, state = carry
                gradient = jax.grad(lambda p: jnp.mean((model.apply(p, chunks)[0] - chunks) ** 2))(params)
                updates, state = optimiser.update(gradient, state)
                return (optax.apply_updates(params, updates), state), None

            return jax.lax.scan(step, (params, optimiser.init(params)), None, length=1000)[0][0]

        return float(jnp.mean(jnp.abs(model.apply(train(params), chunks)[0] - chunks)))

    assert error(2) < 0.5 * error(1)


def test_the_groups_must_divide_the_tokens(chunks):
    with pytest.raises(ValueError, match="4 tokens do not fall into 3 groups of one size"):
        model_of(3).init(jax.random.key(0), chunks)


def test_what_a_config_gets_wrong_is_said():
    config = defaults.metaworld()
    config.autoencoder.network, config.autoencoder.groups = "residual", 3
    assert "config.autoencoder.groups is 3; it must divide the 8 tokens of a skill" in policies.problems(config)
    config.autoencoder.network = "residul"
    assert any("autoencoder.network" in line and "transformer" in line for line in policies.problems(config))

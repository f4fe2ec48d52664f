"""The action autoencoder against a numpy reference, its causality, token counts and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from support import networks_reference as reference

from cso_jax import fsq
from cso_jax.policies.quest.autoencoder import ActionAutoencoder, CausalConv


def small(**fields):
    return ActionAutoencoder(
        **{"action_dim": 3, "width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1} | fields
    )


@pytest.fixture(scope="module")
def model_and_variables():
    model = small()
    return model, reference.init(model, jnp.zeros((1, 32, 3)))


@pytest.fixture(scope="module")
def actions():
    return jax.random.uniform(jax.random.key(1), (6, 32, 3), minval=-1, maxval=1)


def test_matches_the_numpy_reference(model_and_variables, actions):
    model, variables = model_and_variables
    reconstruction, indices = reference.apply(model, variables, actions)
    params = reference.tree64(variables["params"])
    for row in range(len(actions)):
        expected, expected_indices, _ = reference.autoencoder(params, np.asarray(actions[row], np.float64), model)
        np.testing.assert_array_equal(indices[row], expected_indices)
        np.testing.assert_allclose(reconstruction[row], expected, atol=2e-5)
    assert len(np.unique(indices)) > 4


@pytest.mark.parametrize("length", [1, 5])
def test_the_first_actions_are_decoded_without_the_others(model_and_variables, actions, length):
    model, variables = model_and_variables
    indices = model.apply(variables, actions, method="encode")
    whole = model.apply(variables, indices, method="decode")
    first = model.apply(variables, indices, length=length, method="decode")
    np.testing.assert_allclose(first, whole[:, :length], atol=1e-5)
    digits = fsq.indices_to_digits(indices, model.levels).astype(jnp.float32)
    again = model.apply(variables, digits, length=length, method="decode_digits")
    np.testing.assert_array_equal(again, first)


def test_encode_and_decode_agree_with_the_whole(model_and_variables, actions):
    model, variables = model_and_variables
    reconstruction, indices = reference.apply(model, variables, actions)
    assert indices.dtype == jnp.int32
    np.testing.assert_array_equal(reference.apply(model, variables, actions, method="encode"), indices)
    decoded = reference.apply(model, variables, indices, method="decode")
    np.testing.assert_allclose(decoded, reconstruction, atol=1e-6)


@pytest.mark.parametrize(("strides", "tokens"), [((2, 2, 2), 4), ((2, 2, 1), 8), ((2, 1, 1), 16)])
def test_token_counts(strides, tokens):
    model = small(strides=strides)
    (reconstruction, indices), _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 32, 3)))
    assert model.tokens == tokens
    assert indices.shape == (2, tokens) and reconstruction.shape == (2, 32, 3)


def test_last_action_never_influences_the_code(model_and_variables, actions):
    model, variables = model_and_variables

    @jax.jit
    def reconstruct(actions):
        # Straight-through: gradients of the reconstruction exist wherever the code depends on the action.
        return model.apply(variables, actions)[0]

    sensitivity = jax.jit(jax.grad(lambda a: jnp.sum(reconstruct(a) * jnp.arange(3.0))))(actions)
    np.testing.assert_array_equal(sensitivity[:, -1], 0.0)
    assert float(jnp.abs(sensitivity[:, -2]).min()) > 0
    changed = actions.at[:, -1].set(9.0)
    np.testing.assert_array_equal(reconstruct(changed), reconstruct(actions))


def test_gradients_reach_every_parameter(model_and_variables, actions):
    model, variables = model_and_variables

    def loss(variables):
        reconstruction, _ = model.apply(variables, actions, deterministic=False, rngs={"dropout": jax.random.key(3)})
        return jnp.mean(jnp.abs(reconstruction - actions))

    gradients = jax.jit(jax.grad(loss))(variables)
    silent = [jax.tree_util.keystr(path) for path, g in jax.tree.leaves_with_path(gradients) if not jnp.any(g != 0)]
    assert silent == []


def test_dropout_is_a_function_of_its_key(model_and_variables, actions):
    model, variables = model_and_variables

    @jax.jit
    def run(seed):
        return model.apply(variables, actions, deterministic=False, rngs={"dropout": jax.random.key(seed)})[0]

    np.testing.assert_array_equal(run(0), run(0))
    assert jnp.any(run(0) != run(1))


@pytest.mark.parametrize(
    "fields", [{"chunk_length": 30}, {"kernels": (5, 3)}, {"width": 20, "heads": 2}, {"width": 24, "heads": 5}]
)
def test_impossible_fields_are_named(fields):
    model = small(**fields)
    with pytest.raises(ValueError, match=next(iter(fields))):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, model.chunk_length, 3)))


def test_wrong_shapes_are_refused(model_and_variables):
    model, variables = model_and_variables
    with pytest.raises(AssertionError, match="assert_shape"):
        model.apply(variables, jnp.zeros((2, 31, 3)))
    with pytest.raises(AssertionError, match="assert_shape"):
        model.apply(variables, jnp.zeros((2, 7), jnp.int32), method="decode")


@pytest.mark.parametrize(("length", "kernel", "stride"), [(8, 5, 2), (9, 3, 1), (12, 2, 3)])
def test_the_causal_convolution_is_flaxs_with_the_same_parameters(length, kernel, stride):
    x = jax.random.normal(jax.random.key(0), (3, length, 16))
    ours = CausalConv(8, kernel, stride)
    theirs = nn.Conv(8, (kernel,), strides=(stride,), padding=((kernel - 1, 0),))
    params = ours.init(jax.random.key(1), x)
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), atol=2e-6)


def test_queries_shared_by_all_chunks_give_what_queries_of_their_own_give():
    """Without dropout the first decoder layer runs once for all chunks; where hardly anything drops, for each."""
    sizes = {"action_dim": 3, "chunk_length": 8, "width": 16, "encoder_layers": 1, "decoder_layers": 2, "heads": 2}
    actions = jax.random.normal(jax.random.key(0), (5, 8, 3))
    params = ActionAutoencoder(**sizes, dropout=0.0).init(jax.random.key(1), actions)
    shared, _ = ActionAutoencoder(**sizes, dropout=0.0).apply(params, actions, deterministic=False)
    own, _ = ActionAutoencoder(**sizes, dropout=1e-9).apply(
        params, actions, deterministic=False, rngs={"dropout": jax.random.key(2)}
    )
    np.testing.assert_allclose(shared, own, atol=1e-5)

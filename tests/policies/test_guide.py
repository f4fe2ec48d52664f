"""A guided prior: the likeliest skill is that of a regressed chunk, and each stage trains what it says."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cso_jax import envs, policies
from cso_jax.networks.apply import apply
from cso_jax.policies.interface import Sampling
from cso_jax.policies.quest.guide import draw_digits
from cso_jax.policies.through_codebook import through_codebook

CONFIG = Path(__file__).parents[1] / "configs" / "fake.py"
ROWS = 5


@pytest.fixture(scope="module", params=["transformer", "residual"])
def config(request):
    config = runpy.run_path(str(CONFIG))["get_config"]()
    config.autoencoder.network = request.param
    config.prior.head = "digits"
    config.prior.guide = (16,)
    return config


@pytest.fixture(scope="module")
def spec(config):
    return envs.spec(config.env.to_dict())


@pytest.fixture(scope="module")
def policy(config, spec):
    return policies.build(config, spec, num_tasks=3)


@pytest.fixture(scope="module")
def variables(policy, spec):
    return policy.init(jax.random.key(0), spec)


@pytest.fixture(scope="module")
def observation(spec):
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=(ROWS, size)).astype(np.float32) for name, size in spec.lowdim.items()}
    return rows | {"task": np.arange(ROWS, dtype=np.int32) % 3}


def test_greedy_at_first_it_executes_the_regressed_chunk_through_the_codebook(policy, variables, observation):
    decision = policy.decide(
        variables, observation, np.zeros((ROWS, 2), np.uint32), np.zeros(ROWS, np.int32),
        sampling=Sampling(0.0, 0), execution_horizon=3,
    )  # fmt: skip
    context = policy.encode(variables, observation)
    chunk = apply(policy.guide, {"params": variables["guide"]}, context)
    np.testing.assert_allclose(decision.actions, through_codebook(policy, variables, chunk)[:, :3], atol=1e-6)
    assert decision.context.shape == context.shape  # what a frozen encoder is cached as


def test_the_regression_learns_encoder_and_guide_and_leaves_the_prior(policy, variables, observation, config):
    chunk = jnp.zeros((ROWS, policy.autoencoder.chunk_length, policy.autoencoder.action_dim))
    batch = observation | {"chunk": chunk, "skill": policy.tokenise(variables, chunk)}
    assert policy.trained_parts("imitation", config) == ("encoder", "guide")
    trainable = {part: variables[part] for part in ("encoder", "guide")}

    def loss(trainable):
        return policy.loss(trainable, variables, batch, jax.random.key(0), augment_images=False).value

    context = policy.encode(variables, observation)
    expected = jnp.mean(jnp.abs(apply(policy.guide, {"params": variables["guide"]}, context)))
    np.testing.assert_allclose(loss(trainable), expected, rtol=1e-5)
    for part in jax.tree.leaves(jax.tree.map(lambda g: float(jnp.abs(g).max()), jax.grad(loss)(trainable))):
        assert part > 0
    assert np.isfinite(policy.held_out_loss(variables, batch))


def test_digits_are_drawn_as_the_prior_draws_them_and_pass_the_gradient():
    """Sharpness ln 2: a digit one step off has half the probability, one two steps off a sixteenth."""
    digits = jnp.zeros((20_000, 1, 2)).at[..., 1].set(1.0)
    drawn = draw_digits(digits, jax.random.key(0), sharpness=np.log(2.0), levels=(2, 3))
    assert set(np.unique(drawn[..., 0])) == {0.0, 1.0} and set(np.unique(drawn[..., 1])) == {0.0, 1.0, 2.0}
    np.testing.assert_allclose(np.mean(drawn[..., 0] == 0), 2 / 3, atol=0.02)
    np.testing.assert_allclose([np.mean(drawn[..., 1] == j) for j in range(3)], [0.25, 0.5, 0.25], atol=0.02)
    gradient = jax.grad(lambda x: jnp.sum(draw_digits(x, jax.random.key(0), sharpness=1.0, levels=(2, 3))))(digits)
    np.testing.assert_array_equal(gradient, 1.0)


def test_the_regression_can_ask_that_what_is_drawn_around_it_decodes_to_the_chunk(
    config, spec, policy, variables, observation
):
    """So sharp that nothing else is drawn: the error of the chunk, and of its executed actions through the codebook."""
    config = config.copy_and_resolve_references()
    config.prior.guide_decoded, config.prior.guide_sharpness = 3.0, 1e6
    config.prior.guide_decoded_share = 0.41  # two of five rows
    sharp = policies.build(config, spec, num_tasks=3)
    chunk = jnp.full((ROWS, policy.autoencoder.chunk_length, policy.autoencoder.action_dim), 0.25)
    batch = observation | {"chunk": chunk, "skill": policy.tokenise(variables, chunk)}
    trainable = {part: variables[part] for part in ("encoder", "guide")}

    def loss(trainable):
        return sharp.loss(trainable, variables, batch, jax.random.key(0), augment_images=False).value

    regressed = apply(policy.guide, {"params": variables["guide"]}, policy.encode(variables, observation))
    decoded = through_codebook(policy, variables, regressed)[:, : config.execution_horizon]
    expected = jnp.mean(jnp.abs(regressed - 0.25)) + 3 * jnp.mean(jnp.abs(decoded[:2] - 0.25))
    np.testing.assert_allclose(loss(trainable), expected, rtol=1e-5)
    np.testing.assert_allclose(sharp.held_out_loss(variables, batch), expected, rtol=1e-5)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(jax.grad(loss)(trainable)["guide"])) > 0


def test_the_regression_weighs_actions_as_the_codebook_does(config, spec, policy, variables, observation):
    config = config.copy_and_resolve_references()
    config.codebook.action_weight, config.codebook.weighted_actions = 10.0, 2
    weighted = policies.build(config, spec, num_tasks=3)
    chunk = jnp.zeros((ROWS, policy.autoencoder.chunk_length, policy.autoencoder.action_dim))
    batch = observation | {"chunk": chunk, "skill": policy.tokenise(variables, chunk)}
    errors = jnp.abs(apply(policy.guide, {"params": variables["guide"]}, policy.encode(variables, observation)))
    by_action = np.asarray(jnp.mean(errors, axis=(0, 2)))
    weights = np.where(np.arange(len(by_action)) < 2, 10.0, 1.0)
    np.testing.assert_allclose(
        weighted.held_out_loss(variables, batch), np.average(by_action, weights=weights), rtol=1e-5
    )


def test_on_skills_alone_it_learns_their_likelihood(policy, variables, observation, config):
    """What R-SFT does: Eq. 6, through guide and prior."""
    assert policy.trained_parts("rsft", config) == ("encoder", "prior", "guide")
    context = policy.encode(variables, observation)
    skills = policy.sample(variables, context, jax.random.split(jax.random.key(1), ROWS), Sampling(1.0, 0)).tokens
    batch = observation | {"skill": skills}
    expected = -jnp.mean(policy.score(variables, context, skills, temperature=1.0)[0])
    trainable = {part: variables[part] for part in policy.trained_parts("rsft", config)}

    def loss(trainable):
        return policy.loss(trainable, variables, batch, jax.random.key(0), augment_images=False).value

    np.testing.assert_allclose(policy.held_out_loss(variables, batch), expected, rtol=1e-5)
    gradients = jax.grad(loss)(trainable)
    for part in trainable:
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradients[part])) > 0, part


def test_the_policy_gradient_reaches_the_guide_through_the_codebook(policy, variables, observation, config):
    assert policy.trained_parts("spo", config) == ("prior", "guide")
    context = policy.encode(variables, observation)
    drawn = policy.sample(variables, context, jax.random.split(jax.random.key(1), ROWS), Sampling(1.0, 5))

    def log_prob(guide):
        now = variables | {"guide": guide}
        return jnp.sum(policy.score(now, context, drawn.tokens, temperature=1.0, support=drawn.support)[0])

    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(jax.grad(log_prob)(variables["guide"]))) > 0


def test_without_a_guide_nothing_is_there_of_it(config, spec):
    config = config.copy_and_resolve_references()
    config.prior.guide = ()
    plain = policies.build(config, spec, num_tasks=3)
    assert plain.guide is None and not plain.wants.chunk_in and "guide" not in plain.init(jax.random.key(0), spec)
    assert plain.trained_parts("imitation", config) == ("encoder", "prior")
    assert plain.trained_parts("spo", config) == ("prior",)


def test_a_guide_needs_a_positive_sharpness(config):
    config = config.copy_and_resolve_references()
    config.prior.guide_sharpness = 0.0
    assert any("guide_sharpness must be positive" in line for line in policies.problems(config))


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_the_share_of_a_batch_that_is_decoded_is_one(config, share):
    config = config.copy_and_resolve_references()
    config.prior.guide_decoded_share = share
    assert any("guide_decoded_share is a share of the batch" in line for line in policies.problems(config))

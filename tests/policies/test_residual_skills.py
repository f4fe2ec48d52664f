"""VQ-BeT and the STAR-style policy: quantiser and losses against hand-worked constants, what a draw depends on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.policies import PIXELS, STATE, chunks_of, config_of, rows_of, train

from cso_jax import policies
from cso_jax.networks import residual_vq
from cso_jax.policies.interface import Sampling
from cso_jax.policies.residual_skills import focal

SMALL = {"chunk_length": 8, "history": 2, "codes": 8, "latent": 4, "autoencoder_hidden": (16,), "width": 16,
         "layers": 1, "heads": 2, "out": 16, "hidden": (16,), "dropout": 0.0}  # fmt: skip


def made(name, spec=STATE, **values):
    policy = policies.build(config_of(name, **{**SMALL, **values}), spec, 2)
    return policy, policy.init(jax.random.key(0), spec)


# ------------------------------------------------------------------------------------------------------- the quantiser


def test_residuals_by_hand():
    # Codebook 1 has (1, 0) and (0, 1), codebook 2 (0.5, 0) and (0, -0.25).
    embedding = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.0], [0.0, -0.25]]])
    codes, residuals, chosen = residual_vq.quantise(jnp.array([[1.4, 0.1], [0.1, 0.8]]), embedding)
    np.testing.assert_array_equal(codes, [[0, 0], [1, 1]])
    np.testing.assert_allclose(residuals, [[[1.4, 0.1], [0.4, 0.1]], [[0.1, 0.8], [0.1, -0.2]]], atol=1e-6)
    np.testing.assert_allclose(jnp.sum(chosen, axis=1), [[1.5, 0.0], [0.0, 0.75]])
    np.testing.assert_allclose(residual_vq.lookup(embedding, codes), [[1.5, 0.0], [0.0, 0.75]])


def test_moving_averages_by_hand():
    # Decay 0.8, one codebook of two codes in one dimension; three residuals go to code 0, none to code 1.
    books = {"embedding": jnp.array([[[2.0], [5.0]]]), "counts": jnp.array([[1.0, 1.0]]),
             "sums": jnp.array([[[2.0], [5.0]]]), "updates": jnp.ones(())}  # fmt: skip
    found = residual_vq.followed(books, jnp.zeros((3, 1), jnp.int32), jnp.array([[[1.0]], [[2.0]], [[6.0]]]), 0.8)
    # Counts 0.8 + 0.2 * 3 = 1.4 and 0.8; sums 1.6 + 0.2 * 9 = 3.4 and 4. Smoothing by 1e-5 shows in the sixth digit.
    np.testing.assert_allclose(found["counts"], [[1.4, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(found["embedding"][0, :, 0], [3.4 / 1.4, 5.0], rtol=2e-5)
    assert found["updates"] == 2


def test_codebooks_start_from_the_first_batch_only():
    latents = jax.random.normal(jax.random.key(0), (32, 3))
    books = residual_vq.started(residual_vq.empty_codebooks(2, 8, 3), latents, jax.random.key(1))
    rows = {tuple(row) for row in np.asarray(latents).tolist()}
    assert {tuple(row) for row in np.asarray(books["embedding"][0]).tolist()} <= rows
    later = books | {"updates": jnp.ones(())}
    again = residual_vq.started(later, latents + 1.0, jax.random.key(2))
    np.testing.assert_array_equal(again["embedding"], books["embedding"])


def test_rotation_by_hand():
    # From (2, 0) to (0, 3): turned by 90 degrees, stretched by 1.5; so is the gradient, backwards.
    latents, quantised = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 3.0]])
    np.testing.assert_allclose(residual_vq.rotated(latents, quantised), quantised, atol=1e-6)
    for function, expected in (
        (residual_vq.rotated, [[1.5 * 7.0, -1.5 * 4.0]]),
        (residual_vq.straight_through, [[4.0, 7.0]]),
    ):
        gradient = jax.grad(lambda z, f=function: jnp.sum(f(z, quantised) * jnp.array([[4.0, 7.0]])))(latents)
        np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_focal_by_hand():
    # p = 0.25: 0.75^2 * log 4; gamma 0 is the negative log-likelihood.
    np.testing.assert_allclose(focal(jnp.log(0.25), 2.0), 0.75**2 * np.log(4), rtol=1e-6)
    np.testing.assert_allclose(focal(jnp.log(0.25), 0.0), np.log(4), rtol=1e-6)
    # Where p is 1 the gradient is that of -log p, or none.
    assert jax.grad(focal)(0.0, 0.0) == -1.0 and abs(jax.grad(focal)(0.0, 2.0)) < 1e-6


# ---------------------------------------------------------------------------------------------------------- the policy


@pytest.mark.parametrize(("name", "spec"), [("vqbet", STATE), ("star", PIXELS)])
def test_a_draw_is_scored_as_it_was_drawn(name, spec):
    policy, variables = made(name, spec)
    rows = rows_of(spec, policy)

    @functools.partial(jax.jit, static_argnames="sampling")
    def both(rows, keys, sampling):
        decision = policy.decide(variables, rows, keys, jnp.zeros(6, jnp.int32), sampling=sampling, execution_horizon=4)
        scored = policy.score(
            variables, decision.context, decision.skill, temperature=sampling.temperature, support=decision.support
        )
        return decision, scored

    keys = jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(3), 6))
    decision, (log_prob, entropy) = both(rows, keys, Sampling(0.7, 3))
    assert decision.actions.shape == (6, 4, 2) and decision.skill.shape == (6, policy.prior.books)
    np.testing.assert_allclose(log_prob, decision.log_prob, atol=1e-5)
    assert (np.asarray(entropy) > 0).all()
    others = {key: np.concatenate([value[:2], np.roll(value[2:], 1, axis=0)]) for key, value in rows.items()}
    np.testing.assert_array_equal(both(others, keys, Sampling(0.7, 3))[0].actions[:2], decision.actions[:2])


def test_only_the_sequential_prior_knows_the_codes_before():
    for name, alike in (("vqbet", True), ("star", False)):
        policy, variables = made(name)
        context = policy.encode(variables, rows_of(STATE, policy))
        codes = jnp.zeros((6, policy.prior.books), jnp.int32)
        logits = [
            policy.prior.apply(
                {"params": variables["prior"]}, context, codes.at[:, 0].set(code), method="teacher_forced"
            )
            for code in (0, 1)
        ]
        np.testing.assert_array_equal(logits[0][:, 0], logits[1][:, 0])
        assert np.array_equal(logits[0][:, 1], logits[1][:, 1]) == alike


@pytest.mark.parametrize("name", ["vqbet", "star"])
def test_codebook_and_offset_learn_a_batch(name):
    config = config_of(name, **{**SMALL, "latent": 8, "offset_weight": 10.0})
    policy = policies.build(config, STATE, 2)
    variables = policy.init(jax.random.key(0), STATE)
    rows = rows_of(STATE, policy, count=32)
    chunk = chunks_of(policy, rows)
    variables, losses = train(
        policy.codebook_loss, policy.trained_parts("codebook", config), variables, {"chunk": chunk}, 300
    )
    assert losses[-1] < 0.3 * losses[0]
    skill = policy.tokenise(variables, chunk)
    assert len(np.unique(np.asarray(skill), axis=0)) > 4
    before = np.abs(np.asarray(policy.decode(variables, skill)) - chunk).mean()
    imitate = functools.partial(policy.loss, augment_images=False)
    batch = rows | {"chunk": chunk, "skill": skill}
    variables, losses = train(imitate, policy.trained_parts("imitation", config), variables, batch, 300)
    assert losses[-1] < 0.3 * losses[0]
    decision = policy.decide(
        variables, rows, jnp.zeros((32, 2), jnp.uint32), jnp.zeros(32, jnp.int32),
        sampling=Sampling(0.0, 0), execution_horizon=8,
    )  # fmt: skip
    assert np.abs(np.asarray(decision.actions) - chunk).mean() < max(before, 0.02)


def test_values_that_do_not_go_together():
    config = config_of("vqbet", chunk_length=2, focal_weights=(1.0,), heads=7)
    found = policies.problems(config)
    assert ["a chunk has 2" in found[0], "one weight for each" in found[1], "not a multiple" in found[2]] == [True] * 3

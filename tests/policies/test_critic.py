"""The value head: shapes, where it starts, and that the policy's optimiser does not touch it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cso_jax import learner
from cso_jax.policies.quest.critic import ValueHead


def test_starts_at_zero_and_learns():
    contexts = jax.random.normal(jax.random.key(0), (64, 2, 8))
    targets = (contexts[:, 1, 0] > 0).astype(jnp.float32)
    head = ValueHead(hidden=(32,))
    params = head.init(jax.random.key(1), contexts)
    np.testing.assert_array_equal(head.apply(params, contexts), np.zeros(64))
    optimiser = optax.adam(1e-2)

    @jax.jit
    def step(params, opt_state):
        loss, gradient = jax.value_and_grad(lambda p: jnp.mean((head.apply(p, contexts) - targets) ** 2))(params)
        updates, opt_state = optimiser.update(gradient, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, losses = optimiser.init(params), []
    for _ in range(100):
        params, opt_state, loss = step(params, opt_state)
        losses.append(float(loss))
    assert losses[-1] < 0.1 * losses[0]


def test_the_critic_has_a_rate_of_its_own():
    policy_optimiser, _ = learner.make_optimiser(learning_rate=1e-3, weight_decay=0.0, clip_norm=1.0)
    optimiser = learner.with_critic(policy_optimiser, learning_rate=1e-1, clip_norm=1.0)
    trainable = {"prior": {"kernel": jnp.ones(2)}, "critic": {"kernel": jnp.ones(2)}}
    updates, _ = optimiser.update(trainable, optimiser.init(trainable), trainable)
    # Adam's first step has the size of the rate.
    np.testing.assert_allclose(updates["prior"]["kernel"], -1e-3, rtol=1e-3)
    np.testing.assert_allclose(updates["critic"]["kernel"], -1e-1, rtol=1e-3)

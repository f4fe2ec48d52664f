"""ResNet-T: its likelihood against hand-worked constants, what it looks back on, that it learns a batch by heart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.policies import EMBEDDING, PIXELS, STATE, check_interface, chunks_of, config_of, decide, overfit, rows_of

from cso_jax import policies
from cso_jax.envs.protocol import EnvSpec
from cso_jax.policies import resnet_t
from cso_jax.policies.interface import Sampling

SMALL = {"chunk_length": 4, "history": 3, "width": 16, "layers": 1, "heads": 2, "head_width": 8, "feed_forward": 16,
         "modes": 2, "hidden": (16,)}  # fmt: skip


@pytest.mark.parametrize(("spec", "embedding"), [(STATE, None), (PIXELS, EMBEDDING)], ids=["state", "pixels"])
def test_interface(spec, embedding):
    _, still = check_interface("resnet_t", spec, embedding, **SMALL)
    assert still == []


def test_likelihood_by_hand():
    # Weights 0.25 and 0.75; in two dimensions N(0, 1) and N(2, 0.5), at (0, 2).
    logits = jnp.log(jnp.array([1.0, 3.0]))
    mean, std = jnp.array([[0.0, 0.0], [2.0, 2.0]]), jnp.array([[1.0, 1.0], [0.5, 0.5]])
    first = 0.25 * np.exp(-0.5 * 4) / (2 * np.pi)
    second = 0.75 * np.exp(-0.5 * 16) / (2 * np.pi * 0.25)
    found = resnet_t.mixture_log_prob(logits, mean, std, jnp.array([0.0, 2.0]))
    np.testing.assert_allclose(found, np.log(first + second), rtol=1e-5)


def test_positions_by_hand():
    # Width 4: frequencies 1 and 10^-0.5.
    found = resnet_t.frame_positions(3, 4)
    np.testing.assert_allclose(found[2], [np.sin(2), np.sin(2 / 10**0.5), np.cos(2), np.cos(2 / 10**0.5)], rtol=1e-6)


def test_a_frame_sees_no_later_one():
    policy = policies.build(config_of("resnet_t", **SMALL, outputs="all"), STATE, 2)
    variables = policy.init(jax.random.key(0), STATE)
    rows = rows_of(STATE, policy)

    @jax.jit
    def means(rows):
        params = {"params": variables["network"]}
        return policy.network.apply(params, rows, False, method="_mixtures")[1]

    before = means(rows)
    changed = means(rows | {"hand": np.concatenate([rows["hand"][:, :2], rows["hand"][:, 2:] + 1], axis=1)})
    np.testing.assert_array_equal(before[:, :2], changed[:, :2])
    assert not np.allclose(before[:, 2], changed[:, 2], atol=1e-5)


def test_it_learns_a_batch_by_heart():
    policy, variables, rows, chunk, losses = overfit("resnet_t", 1000, **{**SMALL, "dropout": 0.0, "hidden": (64,)})
    assert losses[-1] < losses[0] - 5.0
    actions = decide(policy, variables, rows, sampling=Sampling(0.0, 0))
    assert np.abs(actions - chunk[:, :4]).mean() < 0.05
    assert not np.array_equal(decide(policy, variables, rows), decide(policy, variables, rows, seed=5))


def test_all_outputs_are_trained_on_the_newest_action_only_if_asked_to():
    rows = values = None
    for outputs in ("last", "all"):
        policy = policies.build(config_of("resnet_t", **{**SMALL, "dropout": 0.0}, outputs=outputs), STATE, 2)
        variables = policy.init(jax.random.key(0), STATE)
        rows = rows_of(STATE, policy)
        batch = rows | {"chunk": chunks_of(policy, rows)}
        found = policy.loss(variables, variables, batch, jax.random.key(0), augment_images=False).value
        held_out = policy.held_out_loss(variables, batch)
        assert np.isclose(found, held_out, rtol=1e-5) == (outputs == "last")
        values = (values or []) + [held_out]
    np.testing.assert_allclose(*values)


def test_size_of_the_published_network():
    """4.84 M parameters on LIBERO."""
    spec = EnvSpec({"joints": 7, "hand": 3, "gripper": 2}, {"a": (128, 128, 3), "b": (128, 128, 3)}, 7)
    config = config_of("resnet_t")
    config.execution_horizon = 1
    policy = policies.build(config, spec, 10, 512)
    shapes = jax.eval_shape(lambda: policy.init(jax.random.key(0), spec, np.zeros((10, 512), np.float32)))["network"]
    assert 0.97 < sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 4.84e6 < 1.03


def test_values_that_do_not_go_together():
    assert "a chunk has 1 actions" in policies.problems(config_of("resnet_t"))[0]
    assert "outputs" in policies.problems(config_of("resnet_t", chunk_length=4, outputs="first"))[0]

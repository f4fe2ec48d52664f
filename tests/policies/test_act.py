"""ACT: its loss against hand-worked constants, what it reads, that it learns a batch by heart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.policies import EMBEDDING, PIXELS, STATE, check_interface, config_of, decide, overfit, rows_of

from cso_jax import policies
from cso_jax.envs.protocol import EnvSpec
from cso_jax.policies import act

SMALL = {"chunk_length": 8, "width": 16, "heads": 2, "feed_forward": 32, "style_layers": 1, "encoder_layers": 1,
         "decoder_layers": 2, "style": 4, "dropout": 0.1}  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "embedding", "bins"), [(STATE, None, 0), (PIXELS, EMBEDDING, 0), (STATE, EMBEDDING, 16)]
)
def test_interface(spec, embedding, bins):
    _, still = check_interface("act", spec, embedding, bins=bins, **SMALL)
    # A decoder starts from zeros, so its first self-attention has nothing to mix yet; a key's bias shifts all scores.
    assert not [name for name in still if "decoding_0" not in name and "key']['bias" not in name]


def test_kl_by_hand():
    # One dimension of N(1, e) and one of N(0, 1): (1 + e - 1 - 1) / 2 and 0; the other row is the prior itself.
    mean, log_var = jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(act.kl_to_standard_normal(mean, log_var), (np.e - 1) / 2 / 2, rtol=1e-6)


def test_bins_by_hand():
    # Four bins over [-1, 1]: [-1, -0.5), [-0.5, 0), [0, 0.5), [0.5, 1], with centres at -0.75, -0.25, 0.25, 0.75.
    actions = jnp.array([-1.5, -1.0, -0.51, -0.2, 0.0, 0.49, 1.0, 3.0])
    index = act.bin_of(actions, 4)
    np.testing.assert_array_equal(index, [0, 0, 0, 1, 2, 2, 3, 3])
    np.testing.assert_allclose(act.centre_of(index, 4), [-0.75, -0.75, -0.75, -0.25, 0.25, 0.25, 0.75, 0.75])


@pytest.mark.parametrize(("bins", "within"), [(0, 0.05), (32, 0.06)])
def test_it_learns_a_batch_by_heart(bins, within):
    policy, variables, rows, chunk, losses = overfit(
        "act", 300, **{**SMALL, "width": 32, "dropout": 0.0, "kl_weight": 10.0, "bins": bins}
    )
    assert losses[-1] < 0.2 * losses[0]
    assert np.abs(decide(policy, variables, rows) - chunk[:, :4]).mean() < within


def test_acting_draws_nothing():
    policy = policies.build(config_of("act", **SMALL), STATE, 2)
    variables = policy.init(jax.random.key(0), STATE)
    rows = rows_of(STATE, policy)
    np.testing.assert_array_equal(decide(policy, variables, rows), decide(policy, variables, rows, seed=5))


def test_size_of_the_published_network():
    """15.4 M parameters on LIBERO, of which 9.1 M reach the output in code that takes the first decoder layer."""
    spec = EnvSpec({"joints": 7, "hand": 3, "gripper": 2}, {"a": (128, 128, 3), "b": (128, 128, 3)}, 7)

    def count(**values):
        policy = policies.build(config_of("act", **values), spec, 10, 512)
        shapes = jax.eval_shape(lambda: policy.init(jax.random.key(0), spec, np.zeros((10, 512), np.float32)))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes["network"]))

    assert 0.97 < count() / 15.4e6 < 1.03
    assert 0.97 < count(decoder_output="first") / 9.1e6 < 1.03


def test_values_that_do_not_go_together():
    assert "not a multiple" in policies.problems(config_of("act", width=30))[0]
    assert "decoder_output" in policies.problems(config_of("act", decoder_output="middle"))[0]
    assert "a chunk has 2" in policies.problems(config_of("act", chunk_length=2))[0]

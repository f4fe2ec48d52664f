"""Observation encoder: token layout, task conditioning, refusals, and the published parameter count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import networks_reference as reference

from cso_jax.networks.observation import ObservationEncoder
from cso_jax.policies.quest.autoencoder import ActionAutoencoder
from cso_jax.policies.quest.prior import SkillPrior


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_full_size_model_has_the_published_parameter_count():
    encoder = ObservationEncoder(
        384,
        lowdim=(("joint_states", 7), ("ee_pos", 3), ("gripper_states", 2)),
        images=(("agentview_rgb", (128, 128, 3)), ("eye_in_hand_rgb", (128, 128, 3))),
        task_dim=512,
        task_kind="vector",
    )
    observation = {key: jnp.zeros((1, size)) for key, size in encoder.lowdim}
    observation |= {key: jnp.zeros((1, *shape), jnp.uint8) for key, shape in encoder.images}
    observation["task"] = jnp.zeros((1, 512))
    key = jax.random.key(0)
    shapes = [
        jax.eval_shape(lambda: encoder.init(key, observation, train=False))["params"],
        jax.eval_shape(lambda: ActionAutoencoder(7).init(key, jnp.zeros((1, 32, 7))))["params"],
        jax.eval_shape(lambda: SkillPrior().init(key, jnp.zeros((1, 2, 384)), jnp.zeros((1, 8), jnp.int32)))["params"],
    ]
    assert [count(tree) for tree in shapes] == [2_074_112, 6_522_635, 11_416_936]
    assert count(shapes) == 20_013_683


def state_encoder(**fields):
    return ObservationEncoder(**{"width": 8, "lowdim": (("a", 3), ("b", 2)), "task_dim": 4, "lowdim_width": 6} | fields)


def state_observation(batch=5):
    a, b = (jax.random.normal(jax.random.key(i), (batch, size)) for i, size in ((0, 3), (1, 2)))
    return {"a": a, "b": b, "task": jnp.arange(batch, dtype=jnp.int32) % 4, "unused": jnp.zeros(3)}


def test_state_context_matches_numpy():
    model, observation = state_encoder(), state_observation()
    variables = reference.init(model, observation, train=True)
    context = reference.apply(model, variables, observation, train=False)
    p = reference.tree64(variables["params"])
    parts = [reference.linear(p[f"lowdim_{k}"]["projection"], np.asarray(observation[k], np.float64)) for k in "ab"]
    expected = reference.linear(p["obs_proj"], np.concatenate(parts, -1))
    assert context.shape == (5, 2, 8)
    np.testing.assert_allclose(context[:, 1], expected, atol=1e-5)
    np.testing.assert_array_equal(context[:, 0], variables["params"]["task_table"][observation["task"]])


@pytest.mark.parametrize("task_in_lowdim", [False, True])
def test_task_reaches_the_observation_token_only_when_asked(task_in_lowdim):
    model, observation = state_encoder(lowdim_hidden=(16, 16), task_in_lowdim=task_in_lowdim), state_observation()
    variables = reference.init(model, observation, train=True)
    apply = jax.jit(lambda observation: model.apply(variables, observation, train=False))
    context, other = apply(observation), apply(observation | {"task": (observation["task"] + 1) % 4})
    assert jnp.all(jnp.any(context[:, 0] != other[:, 0], axis=-1))
    assert bool(jnp.any(context[:, 1] != other[:, 1])) == task_in_lowdim


def test_low_dimensional_inputs_meet_in_an_encoder_only_where_they_go_through_it_together():
    observation = state_observation()
    for together in (False, True):
        model = state_encoder(lowdim_hidden=(16, 16), lowdim_together=together)
        variables = reference.init(model, observation, train=True)
        parts = {name for name in variables["params"] if name.startswith("lowdim_")}
        assert parts == ({"lowdim_a_b"} if together else {"lowdim_a", "lowdim_b"})

        def token(a, b, model=model, variables=variables):
            return model.apply(variables, observation | {"a": a, "b": b}, train=False)[:, 1]

        a, b = observation["a"], observation["b"]
        # What b adds does not depend on a, unless something nonlinear has read both.
        mixed = token(a, b) - token(a, b + 1) - token(a + 1, b) + token(a + 1, b + 1)
        assert bool(jnp.abs(mixed).max() > 1e-3) == together


def test_images_and_task_vectors():
    model = state_encoder(
        images=(("cam", (16, 16, 3)),),
        task_kind="vector",
        task_dim=7,
        image_width=16,
        task_in_lowdim=True,
        norm="group",
    )
    pixels = jax.random.randint(jax.random.key(0), (5, 16, 16, 3), 0, 256).astype(jnp.uint8)
    observation = state_observation() | {"cam": pixels, "task": jnp.ones((5, 7))}
    variables = reference.init(model, observation, train=True)
    apply = jax.jit(lambda observation: model.apply(variables, observation, train=True))
    context, darker = apply(observation), apply(observation | {"cam": pixels // 2})
    np.testing.assert_array_equal(context[:, 0], darker[:, 0])
    assert jnp.any(context[:, 1] != darker[:, 1])


def test_module_is_hashable():
    assert hash(state_encoder()) == hash(state_encoder())


def test_bad_observations_are_refused():
    model, observation = state_encoder(), state_observation()
    variables = reference.init(model, observation, train=True)
    with pytest.raises(ValueError, match=r"lacks \['b'\]"):
        model.apply(variables, {k: v for k, v in observation.items() if k != "b"}, train=False)
    with pytest.raises(AssertionError, match="assert_shape"):
        model.apply(variables, observation | {"a": jnp.zeros((5, 4))}, train=False)
    with pytest.raises(AssertionError, match="assert_shape"):
        model.apply(variables, observation | {"task": jnp.zeros((5, 4))}, train=False)
    with pytest.raises(ValueError, match="at least one"):
        state_encoder(lowdim=()).init(jax.random.key(0), observation, train=False)

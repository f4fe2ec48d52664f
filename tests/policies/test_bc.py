"""Behaviour cloning as a policy: what it reads, what its loss weighs, that it learns, and that it runs as a cascade."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.cascade import CONFIG

from cso_jax import config as configs
from cso_jax import defaults, learner, main, policies
from cso_jax.envs.protocol import EnvSpec
from cso_jax.files import read_jsonl
from cso_jax.policies.interface import Sampling

SPEC = EnvSpec(action_dim=2, lowdim={"hand": 3, "state": 4}, images={})
PIXELS = EnvSpec(action_dim=2, lowdim={"hand": 3}, images={"camera": (16, 16, 3)})
NO_SAMPLING = Sampling(1.0, 5)


def config_of(**values):
    config = defaults.with_policy(defaults.metaworld(), "bc")
    with config.unlocked():
        config.encoder.image_width = 16
        config.policy.update({"hidden": (16, 16), "chunk_length": 8, **values})
        config.execution_horizon = 4
    return config


def rows_of(spec, count=6, seed=0):
    rng = np.random.default_rng(seed)
    rows = {name: rng.normal(size=(count, size)).astype(np.float32) for name, size in spec.lowdim.items()}
    rows |= {name: rng.integers(0, 256, (count, *shape), np.uint8) for name, shape in spec.images.items()}
    return rows | {"task": np.arange(count, dtype=np.int32) % 2}


def decide(policy, variables, rows):
    keys = np.zeros((len(rows["task"]), 2), np.uint32)
    index = np.zeros(len(rows["task"]), np.int32)
    return policy.decide(variables, rows, keys, index, sampling=NO_SAMPLING, execution_horizon=4)


@pytest.mark.parametrize("embedding", [None, np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)])
@pytest.mark.parametrize("spec", [SPEC, PIXELS], ids=["state", "pixels"])
def test_every_input_matters_and_every_row_is_its_own(spec, embedding):
    policy = policies.build(config_of(), spec, 2, 0 if embedding is None else embedding.shape[1])
    variables = policy.init(jax.random.key(0), spec, embedding)
    rows = rows_of(spec)
    decision = decide(policy, variables, rows)
    assert decision.actions.shape == (6, 4, 2) and decision.skill is None and decision.log_prob is None
    for name, value in rows.items():
        other = (1 - value if name == "task" else value.max() - value).astype(value.dtype)
        changed = decide(policy, variables, rows | {name: other}).actions
        assert not np.allclose(changed, decision.actions, atol=1e-6), name
    alone = decide(policy, variables, {name: value[:2] for name, value in rows.items()}).actions
    np.testing.assert_allclose(alone, decision.actions[:2], atol=1e-5)


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 2.0), (0.0, 1.0), (0.5, (1 + 0.5 * 3) / 1.5)])
def test_the_loss_weighs_later_actions_as_asked(weight, expected):
    policy = policies.build(config_of(later_weight=weight), SPEC, 2)
    variables = policy.init(jax.random.key(0), SPEC)
    rows = rows_of(SPEC)
    errors = np.repeat([1.0, -3.0], 4)[:, None]  # of the four executed actions, then of the others
    batch = rows | {"chunk": np.asarray(policy.chunks(variables, rows)) + errors}
    found = policy.loss(variables, variables, batch, jax.random.key(0), augment_images=False)
    assert found.value.dtype == jnp.float32
    np.testing.assert_allclose(found.value, expected, rtol=1e-5)
    np.testing.assert_allclose(found.metrics["executed_l1"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(policy.held_out_loss(variables, batch), expected, rtol=1e-5)


def test_observations_are_normalised_by_the_demonstrations():
    config = config_of()
    policy = policies.build(config, SPEC, 2)
    rows = rows_of(SPEC, 50)
    far = {name: value if name == "task" else 300 + 1000 * value for name, value in rows.items()}
    outputs = []
    for seen in (rows, far):
        variables = policy.init(jax.random.key(0), SPEC)
        lowdim = {name: seen[name] for name in SPEC.lowdim}
        outputs.append(policy.chunks(policy.prepare(variables, lowdim, config), seen))
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-3)


def test_it_learns_and_its_batch_statistics_move():
    config = config_of(hidden=(64, 64))
    policy = policies.build(config, PIXELS, 2)
    variables = policy.init(jax.random.key(0), PIXELS)
    rows = rows_of(PIXELS, 8)
    goal = rows["hand"][:, None, :2] * np.where(rows["task"], 1, -1)[:, None, None]
    batch = rows | {"chunk": np.repeat(goal, 8, axis=1).astype(np.float32)}
    optimiser, _ = learner.make_optimiser(learning_rate=3e-3, weight_decay=0.0, clip_norm=1.0)
    state = learner.start(variables, policy.trained_parts("imitation", config), optimiser)

    def loss(*arguments):
        return policy.loss(*arguments, augment_images=True)

    update = learner.supervised_update(loss, optimiser, learner.make_mesh(jax.devices()[:1]))
    losses = []
    for step in range(100):
        state, metrics = update(state, batch, jax.random.key(step))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.5 * losses[0]
    before = jax.tree.leaves(variables["batch_stats"])
    after = jax.tree.leaves(state.variables["batch_stats"])
    assert before and all(not np.allclose(one, other) for one, other in zip(before, after, strict=True))
    assert set(state.trainable) == {"network"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"policy.hidden": "16,0"}, r"config\.policy\.hidden must hold whole numbers of at least 1; got \(16, 0\)"),
        ({"policy.chunk_length": "4"}, r"config\.execution_horizon is 8, but a chunk has 4 actions"),
        ({"policy.width": "4"}, r"unknown config key config\.policy\.width"),
    ],
)
def test_values_that_make_no_policy(values, message):
    with pytest.raises(configs.ConfigError, match=message):
        configs.load(CONFIG, [("policy.name", "bc"), *values.items()])


def test_any_config_becomes_one_of_behaviour_cloning_on_the_command_line(tmp_path):
    """The same demonstrations, evaluation, rows and report as for QueST, without its stages."""
    changes = {"policy.name": "bc", "policy.hidden": "128,128", "policy.chunk_length": "8", "imitation.steps": "500"}
    arguments = [f"--config.{key}={value}" for key, value in changes.items()]
    assert main.main([f"--config={CONFIG}", f"--workdir={tmp_path}", *arguments]) == 0
    rows = read_jsonl(tmp_path / "episodes.jsonl")
    assert [row["stage"] for row in rows] == ["imitation"] * 12
    assert np.mean([row["success"] for row in rows]) > 0.8
    assert list(json.loads((tmp_path / "stages.json").read_text())) == ["demos", "imitation"]
    page = (tmp_path / "report.html").read_text()
    assert "Imitation" in page and "What the data allows" not in page

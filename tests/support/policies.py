"""What every policy that clones chunks must do, and rows to try it on."""

import functools

import jax
import numpy as np

from cso_jax import defaults, learner, policies
from cso_jax.envs.protocol import EnvSpec
from cso_jax.policies.interface import Sampling

STATE = EnvSpec(action_dim=2, lowdim={"hand": 3, "state": 4}, images={})
PIXELS = EnvSpec(action_dim=2, lowdim={"hand": 3}, images={"camera": (16, 16, 3)})
EMBEDDING = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)


def config_of(name, **values):
    """A small config for a kind of policy: `values` of its own section, 4 actions executed."""
    config = defaults.with_policy(defaults.metaworld(), name)
    with config.unlocked():
        config.encoder.image_width = 16
        config.policy.update(values)
        config.execution_horizon = 4
    return config


def rows_of(spec, policy, count=6, seed=0):
    """Observations of `count` rows with the policy's history, of two tasks in turn."""
    rng = np.random.default_rng(seed)
    steps = () if policy.wants.history == 1 else (policy.wants.history,)
    rows = {name: rng.normal(size=(count, *steps, size)).astype(np.float32) for name, size in spec.lowdim.items()}
    rows |= {name: rng.integers(0, 256, (count, *steps, *shape), np.uint8) for name, shape in spec.images.items()}
    return rows | {"task": np.arange(count, dtype=np.int32) % 2}


def chunks_of(policy, rows, action_dim=2):
    """Smooth chunks within [-1, 1], one per row, that the row's observations do not tell."""
    rng = np.random.default_rng(7)
    phase = rng.uniform(-1, 1, (len(rows["task"]), 1, action_dim))
    return np.sin(phase + np.linspace(0, 1, policy.wants.chunk_length)[None, :, None]).astype(np.float32)


def decide(policy, variables, rows, *, seed=0, sampling=None, execution_horizon=4):
    """The actions that are executed, a row's key being its number and `seed`."""
    count = len(rows["task"])
    keys = np.stack([np.full(count, seed, np.uint32), np.arange(count, dtype=np.uint32)], axis=1)
    decision = _decide(
        policy, variables, rows, keys, np.zeros(count, np.int32),
        sampling=sampling or Sampling(1.0, 0), execution_horizon=execution_horizon,
    )  # fmt: skip
    return np.asarray(decision.actions)


@functools.partial(jax.jit, static_argnames=("policy", "sampling", "execution_horizon"))
def _decide(policy, variables, rows, keys, index, *, sampling, execution_horizon):
    return policy.decide(variables, rows, keys, index, sampling=sampling, execution_horizon=execution_horizon)


def check_interface(name, spec, embedding=None, **values):
    """Shapes, that every input matters, that a row is its own; returns the policy and what the loss does not reach.

    The latter are the paths of parameters whose gradient is zero.
    """
    config = config_of(name, **values)
    assert policies.problems(config) == []
    policy = policies.build(config, spec, 2, 0 if embedding is None else embedding.shape[1])
    variables = policy.init(jax.random.key(0), spec, embedding)
    rows = rows_of(spec, policy)
    actions = decide(policy, variables, rows)
    assert actions.shape == (6, 4, 2) and np.isfinite(actions).all()
    for key, value in rows.items():
        other = (1 - value if key == "task" else value.max() - value).astype(value.dtype)
        assert not np.allclose(decide(policy, variables, rows | {key: other}), actions, atol=1e-6), key
    others = {key: np.concatenate([value[:2], np.roll(value[2:], 1, axis=0)]) for key, value in rows.items()}
    np.testing.assert_array_equal(decide(policy, variables, others)[:2], actions[:2])
    batch = rows | {"chunk": chunks_of(policy, rows)}
    trainable = {"network": variables["network"]}

    def value_of(trainable):
        return policy.loss(trainable, variables, batch, jax.random.key(1), augment_images=bool(spec.images)).value

    @jax.jit
    def losses(trainable):
        return jax.value_and_grad(value_of)(trainable), policy.held_out_loss(variables, batch)

    (value, gradient), held_out = losses(trainable)
    assert np.isfinite(value) and value.dtype == np.float32
    still = [jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
             if not np.asarray(leaf).any()]  # fmt: skip
    assert np.isfinite(held_out)
    return policy, still


def overfit(name, steps, learning_rate=3e-3, spec=STATE, seed=0, repeated=1, **values):
    """Trains on one batch, so often in it; returns the policy, its variables, the rows, their chunks and the losses."""
    config = config_of(name, **values)
    policy = policies.build(config, spec, 2)
    variables = policy.init(jax.random.key(seed), spec)
    rows = rows_of(spec, policy)
    chunk = chunks_of(policy, rows)
    batch = {name: np.concatenate([value] * repeated) for name, value in (rows | {"chunk": chunk}).items()}
    loss = functools.partial(policy.loss, augment_images=False)
    parts = policy.trained_parts("imitation", config)
    variables, losses = train(loss, parts, variables, batch, steps, learning_rate=learning_rate)
    return policy, variables, rows, chunk, losses


def train(loss, parts, variables, batch, steps, *, learning_rate=3e-3):
    """Variables after so many steps on one batch, and the losses before each."""
    optimiser, _ = learner.make_optimiser(learning_rate=learning_rate, weight_decay=0.0, clip_norm=10.0)
    state = learner.start(variables, parts, optimiser)
    update = learner.supervised_update(loss, optimiser, learner.make_mesh())
    steps_at_once = learner.repeated(lambda state, batch, key: update(state, batch, key), learner.make_mesh())
    batches = jax.tree.map(lambda value: np.broadcast_to(value, (steps, *np.shape(value))), dict(batch))
    state, metrics = steps_at_once(state, batches, jax.random.split(jax.random.key(1), steps))
    return state.variables, np.asarray(metrics["loss"])

"""Policy and updates together: the ratio starts at one, gradients push the right way, devices do not matter."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cso_jax import defaults, learner
from cso_jax.envs.protocol import EnvSpec
from cso_jax.policies.interface import Loss, Sampling
from cso_jax.policies.observations import fit_normaliser, normalise
from cso_jax.policies.quest.policy import QuestPolicy, build
from cso_jax.stages.spo.objectives import clipped

SPEC = EnvSpec(lowdim={"state": 5}, images={}, action_dim=3)
PIXELS = EnvSpec(lowdim={"hand": 2}, images={"corner2": (16, 16, 3)}, action_dim=3)
ROWS = 16


def small(spec=SPEC):
    return built(spec is PIXELS)


@functools.cache
def built(pixels):
    spec = PIXELS if pixels else SPEC
    config = defaults.metaworld()
    config.autoencoder.chunk_length = 8
    for section in (config.autoencoder, config.prior):
        section.width = 16
        section.heads = 2
    config.autoencoder.encoder_layers = config.autoencoder.decoder_layers = config.prior.layers = 1
    config.encoder.image_width = 16
    config.encoder.lowdim_width = 8
    policy = build(config, spec, num_tasks=3)
    return policy, policy.init(jax.random.key(0), spec)


def observations(spec=SPEC, rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    batch = {name: rng.normal(size=(rows, size)).astype(np.float32) for name, size in spec.lowdim.items()}
    batch |= {name: rng.integers(0, 255, (rows, *shape), np.uint8) for name, shape in spec.images.items()}
    return batch | {"task": rng.integers(0, 3, rows).astype(np.int32)}


@functools.partial(jax.jit, static_argnames=("policy", "top_k", "temperature"))
def decide(policy, variables, rows, *, top_k=5, temperature=1.0, keys=None):
    count = len(rows["task"])
    keys = np.stack([np.arange(count), np.arange(count)], 1).astype(np.uint32) if keys is None else keys
    return policy.decide(
        variables, rows, keys, np.zeros(len(rows["task"]), np.int32),
        sampling=Sampling(temperature, top_k), execution_horizon=4,
    )  # fmt: skip


@pytest.mark.parametrize(("top_k", "temperature"), [(5, 1.0), (0, 1.0), (3, 1.7)])
def test_the_policy_in_the_ratio_is_the_policy_that_acted(top_k, temperature):
    policy, variables = small()
    drawn = decide(policy, variables, observations(), top_k=top_k, temperature=temperature)
    log_prob, _ = score(policy, variables, drawn.context, drawn.skill, temperature=temperature, support=drawn.support)
    np.testing.assert_allclose(log_prob, drawn.log_prob, atol=1e-5)
    assert (drawn.support is None) == (top_k == 0)
    assert drawn.actions.shape == (ROWS, 4, 3)


def test_a_row_does_not_depend_on_its_neighbours():
    policy, variables = small()
    rows, keys = observations(), np.arange(2 * ROWS, dtype=np.uint32).reshape(ROWS, 2)
    together = decide(policy, variables, rows, keys=keys)
    order = np.random.default_rng(1).permutation(ROWS)
    moved = decide(policy, variables, {name: value[order] for name, value in rows.items()}, keys=keys[order])
    np.testing.assert_array_equal(np.asarray(together.skill)[order], moved.skill)
    np.testing.assert_array_equal(np.asarray(together.log_prob)[order], moved.log_prob)
    np.testing.assert_array_equal(np.asarray(together.actions)[order], moved.actions)


score = jax.jit(QuestPolicy.score, static_argnames=("self", "temperature"))


def surrogate(policy, mesh, unit="skill"):
    optimiser = optax.sgd(0.1)  # Adam's first step is the sign of the gradient: it would hide its size
    settings = defaults.metaworld().copy_and_resolve_references().spo
    with settings.unlocked():
        settings.unit = unit
    loss = clipped.loss(settings)
    return optimiser, learner.policy_gradient_update(policy, optimiser, mesh, loss, temperature=1.0, entropy_bonus=0.0)


def rollouts(policy, variables, rows=None):
    rows = observations() if rows is None else rows
    drawn = decide(policy, variables, rows)
    return {
        "skill": np.asarray(drawn.skill),
        "log_prob": np.asarray(drawn.log_prob),
        "support": np.asarray(drawn.support),
        "context": np.asarray(drawn.context),
        "advantage": np.where(np.arange(ROWS) < ROWS // 2, 0.5, -0.5).astype(np.float32),
        "episode_id": (np.arange(ROWS) // 2).astype(np.int32),
        "episodes": np.full(ROWS, ROWS // 2, np.float32),
        "mask": np.ones(ROWS, np.float32),
    }


@pytest.mark.parametrize("unit", ["token", "skill", "trajectory"])
def test_an_update_favours_what_succeeded(unit):
    policy, variables = small()
    mesh = learner.make_mesh(jax.devices()[:1])
    optimiser, update = surrogate(policy, mesh, unit=unit)
    batch = rollouts(policy, variables)
    state, metrics = update(learner.start(variables, ("prior",), optimiser), batch, jax.random.key(0))
    assert metrics["clip_fraction"] == 0
    assert metrics["max_abs_token_log_ratio"] < 1e-5
    after, _ = score(
        policy, state.variables, batch["context"], batch["skill"], temperature=1.0, support=batch["support"]
    )
    change = np.sum(np.asarray(after) - batch["log_prob"], axis=1)
    assert change[: ROWS // 2].mean() > 0 > change[ROWS // 2 :].mean()
    assert int(state.step) == 1


def test_two_devices_compute_what_one_does():
    policy, variables = small()
    outcomes = []
    for devices in (jax.devices()[:1], jax.devices()[:2]):
        mesh = learner.make_mesh(devices)
        optimiser, update = surrogate(policy, mesh, unit="trajectory")
        state = learner.replicate(learner.start(variables, ("prior",), optimiser), mesh)
        outcomes.append(update(state, learner.shard(rollouts(policy, variables), mesh), jax.random.key(0)))
    (one, one_metrics), (two, two_metrics) = outcomes
    for left, right in zip(jax.tree.leaves(one.trainable), jax.tree.leaves(two.trainable), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-6)
    for name, value in one_metrics.items():
        np.testing.assert_allclose(value, two_metrics[name], rtol=1e-4, atol=1e-6, err_msg=name)
    with pytest.raises(ValueError, match="3 rows, which 2 devices cannot share"):
        learner.shard({"mask": np.ones(3)}, learner.make_mesh(jax.devices()[:2]))


@pytest.mark.parametrize("devices", [1, 2])
def test_several_steps_in_one_call_are_those_steps(devices):
    policy, variables = small()
    mesh = learner.make_mesh(jax.devices()[:devices])
    optimiser, _ = learner.make_optimiser(learning_rate=1e-3, weight_decay=1e-4, clip_norm=1.0)
    update = learner.supervised_update(policy.codebook_loss, optimiser, mesh)
    batches = np.random.default_rng(0).normal(size=(3, ROWS, 8, 3)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 3)
    one = learner.replicate(learner.start(variables, ("autoencoder",), optimiser), mesh)
    losses = []
    for chunk, key in zip(batches, keys, strict=True):
        one, metrics = update(one, learner.shard({"chunk": chunk}, mesh), key)
        losses.append(metrics["loss"])
    several = learner.replicate(learner.start(variables, ("autoencoder",), optimiser), mesh)
    several, metrics = learner.repeated(update, mesh)(several, learner.shard({"chunk": batches}, mesh, axis=1), keys)
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
    assert int(several.step) == 3 and metrics["codes"].shape[:2] == (3, ROWS)
    for left, right in zip(jax.tree.leaves(one.trainable), jax.tree.leaves(several.trainable), strict=True):
        np.testing.assert_allclose(left, right, atol=5e-5)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_batch_in_parts_makes_the_step_of_the_whole(devices):
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(ROWS, 3)).astype(np.float32), "y": rng.normal(size=ROWS).astype(np.float32)}
    mesh = learner.make_mesh(jax.devices()[:devices])
    optimiser = optax.sgd(0.1)

    def loss(trainable, fixed, batch, key):
        error = batch["x"] @ trainable["w"] - batch["y"]
        return Loss(jnp.mean(error**2), {"seen": fixed["seen"] + len(error)}, {"first": batch["x"][:, 0]})

    outcomes = []
    for accumulate in (1, 4):
        update = learner.supervised_update(loss, optimiser, mesh, accumulate=accumulate)
        variables = {"w": jnp.ones(3), "seen": jnp.zeros((), jnp.int32)}
        state = learner.replicate(learner.start(variables, ("w",), optimiser), mesh)
        outcomes.append(update(state, learner.shard(batch, mesh), jax.random.key(0)))
    (whole, whole_metrics), (parts, parts_metrics) = outcomes
    np.testing.assert_allclose(parts.trainable["w"], whole.trainable["w"], rtol=1e-6)
    assert int(parts.fixed["seen"]) == int(whole.fixed["seen"]) == ROWS and int(parts.step) == 1
    for name, value in whole_metrics.items():
        np.testing.assert_allclose(parts_metrics[name], value, rtol=1e-6, err_msg=name)


def test_what_is_frozen_stays():
    policy, variables = small(PIXELS)
    mesh = learner.make_mesh(jax.devices()[:1])
    rows = observations(PIXELS)
    batch = rollouts(policy, variables, rows)
    optimiser, update = surrogate(policy, mesh)
    frozen, _ = update(learner.start(variables, ("prior",), optimiser), batch, jax.random.key(0))
    assert set(frozen.trainable) == {"prior"}
    assert_equal(frozen.fixed["encoder"], variables["encoder"])
    optimiser, update = surrogate(policy, mesh)
    batch.pop("context")
    batch |= {f"observation/{name}": value for name, value in rows.items()}
    free, metrics = update(learner.start(variables, ("encoder", "prior"), optimiser), batch, jax.random.key(0))
    assert metrics["max_abs_token_log_ratio"] < 1e-4
    # The first image convolution moves; the running statistics belong to imitation and stay.
    moved = free.trainable["encoder"]["image_corner2"]["trunk"]["conv1"]["kernel"]
    assert not np.array_equal(moved, variables["encoder"]["image_corner2"]["trunk"]["conv1"]["kernel"])
    assert_equal(free.fixed["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("spec", [SPEC, PIXELS], ids=["state", "pixels"])
def test_what_acts_and_what_is_scored_is_float32_on_any_hardware(spec):
    """Lowered programs: every product and convolution asks for HIGHEST, those of the gradient too."""
    policy, variables = small(spec)
    rows = observations(spec)
    acting = decide.lower(policy, variables, rows).as_text()
    assert precisions(acting) == {"HIGHEST"} and len(dots(acting)) > 10
    batch = rollouts(policy, variables, rows)
    scoring = score.lower(
        policy, variables, batch["context"], batch["skill"], temperature=1.0, support=batch["support"]
    )
    assert precisions(scoring.as_text()) == {"HIGHEST"}
    mesh = learner.make_mesh(jax.devices()[:1])
    optimiser, update = surrogate(policy, mesh)
    batch.pop("context")
    batch |= {f"observation/{name}": value for name, value in rows.items()}
    state = learner.start(variables, ("encoder", "prior"), optimiser)
    updating = update.lower(state, batch, jax.random.key(0)).as_text()
    assert precisions(updating) == {"HIGHEST"} and len(dots(updating)) > len(dots(scoring.as_text()))
    assert ("convolution" in "".join(dots(updating))) == bool(spec.images)
    tokenising = jax.jit(QuestPolicy.tokenise, static_argnums=0).lower(
        policy, variables, np.zeros((2, 8, 3), np.float32)
    )
    assert precisions(tokenising.as_text()) == {"HIGHEST"}


@pytest.mark.parametrize(("precision", "wanted"), [("default", {"DEFAULT"}), ("highest", {"HIGHEST"})])
def test_training_has_the_precision_that_is_asked_for(precision, wanted):
    policy, variables = small(PIXELS)
    mesh = learner.make_mesh(jax.devices()[:1])
    optimiser = optax.sgd(0.1)
    loss = functools.partial(policy.loss, augment_images=False)
    imitation = learner.supervised_update(loss, optimiser, mesh, precision=precision)
    batch = observations(PIXELS) | {"skill": np.zeros((ROWS, 2), np.int32)}
    state = learner.start(variables, ("encoder", "prior"), optimiser)
    assert precisions(imitation.lower(state, batch, jax.random.key(0)).as_text()) == wanted
    codebook = learner.supervised_update(policy.codebook_loss, optimiser, mesh, precision=precision)
    state = learner.start(variables, ("autoencoder",), optimiser)
    chunks = {"chunk": np.zeros((4, 8, 3), np.float32)}
    assert precisions(codebook.lower(state, chunks, jax.random.key(0)).as_text()) == wanted


def dots(program):
    """The lines of a lowered program that multiply matrices or convolve."""
    return [line for line in program.splitlines() if "stablehlo.dot_general" in line or "stablehlo.convolution" in line]


def precisions(program):
    found = [re.findall(r"\b(DEFAULT|HIGH|HIGHEST)\b", line) or ["DEFAULT"] for line in dots(program)]
    return {name for names in found for name in names}


def test_sampling_works_on_the_arrays_of_a_checkpoint():
    policy, variables = small()
    on_disk = jax.tree.map(np.asarray, variables)
    keys = jax.random.split(jax.random.key(0), ROWS)
    context = policy.encode(on_disk, observations())
    drawn = policy.sample(on_disk, context, keys, Sampling(1.0, 5))
    assert drawn.tokens.shape == (ROWS, 2) and np.isfinite(drawn.log_prob).all()
    assert np.isfinite(policy.decode(on_disk, np.asarray(drawn.tokens))).all()


def assert_equal(one, other):
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(left, right)


def test_imitation_learns_and_moves_running_statistics():
    policy, variables = small(PIXELS)
    mesh = learner.make_mesh(jax.devices()[:1])
    optimiser, _ = learner.make_optimiser(learning_rate=3e-3, weight_decay=0.0, clip_norm=1.0)
    update = learner.supervised_update(functools.partial(policy.loss, augment_images=True), optimiser, mesh)
    state = learner.start(variables, ("encoder", "prior"), optimiser)
    batch = observations(PIXELS) | {"skill": np.tile(np.arange(2, dtype=np.int32), (ROWS, 1))}
    losses = []
    for step in range(30):
        state, metrics = update(state, batch, jax.random.fold_in(jax.random.key(0), step))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    before, after = jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(state.fixed["batch_stats"])
    assert any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert float(policy.held_out_loss(state.variables, batch)) < losses[0]


def test_weight_decay_acts_on_matrices_only():
    params = {"dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "tok_emb": jnp.ones((3, 2)),
              "attention": {"in_proj_kernel": jnp.ones((2, 6)), "in_proj_bias": jnp.ones(6)},
              "norm": {"scale": jnp.ones(2)}}  # fmt: skip
    optimiser, _ = learner.make_optimiser(learning_rate=0.1, weight_decay=0.5, clip_norm=1.0)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimiser.update(zero, optimiser.init(params), params)
    decayed = {jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
               if np.any(leaf)}  # fmt: skip
    assert decayed == {"['dense']['kernel']", "['attention']['in_proj_kernel']"}


def test_schedule():
    _, schedule = learner.make_optimiser(
        learning_rate=1e-4, final_learning_rate=1e-5, steps=100, warmup_steps=10, weight_decay=0.0, clip_norm=1.0
    )
    np.testing.assert_allclose([schedule(0), schedule(5), schedule(10), schedule(100)], [0, 5e-5, 1e-4, 1e-5],
                               rtol=1e-5)  # fmt: skip
    _, constant = learner.make_optimiser(learning_rate=1e-6, weight_decay=0.0, clip_norm=1.0)
    assert constant(0) == constant(1000) == 1e-6


def test_normaliser():
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 2.0, (1000, 2)).astype(np.float32)
    values[:, 1] = 0.25
    stats = fit_normaliser({"state": values})
    normalised = normalise({"normaliser": stats}, {"state": values, "task": np.zeros(3)})
    np.testing.assert_allclose(np.mean(normalised["state"][:, 0]), 0, atol=1e-3)
    np.testing.assert_allclose(np.std(normalised["state"][:, 0]), 1, rtol=1e-3)
    np.testing.assert_allclose(normalised["state"][:, 1], 0, atol=1e-4)  # constant, not 0 / 0

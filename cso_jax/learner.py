"""Jitted update steps: what is differentiated, the optimiser, sharding over a device mesh, donation, metrics.

Every update has the same form, `update(state, batch, key) -> (state, metrics)`, with `state` donated and replicated
and the batch sharded over the mesh's "data" axis by its leading dimension. Metrics are scalars on the device.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cso_jax import loops
from cso_jax.policies.interface import Loss, SkillPolicy, Variables
from cso_jax.precision import at

Batch = dict[str, Any]
Update = Callable[["LearnerState", Batch, jax.Array], tuple["LearnerState", dict[str, jax.Array]]]

CRITIC = "critic"
"""The part beside the policy's own that a learned value adds to what is trained."""


class LearnerState(struct.PyTreeNode):
    """What one stage trains (`trainable`), what it only uses (`fixed`), and the optimiser's state."""

    step: jax.Array
    trainable: dict[str, Any]
    fixed: dict[str, Any]
    opt_state: Any

    @property
    def variables(self) -> Variables:
        return {**self.fixed, **self.trainable}


def start(variables: Variables, parts: tuple[str, ...], optimiser: optax.GradientTransformation) -> LearnerState:
    """A learner state that trains the named top-level parts of `variables`."""
    variables = jax.tree.map(jnp.array, variables)  # copies: the state is donated, the caller keeps its own
    trainable = {part: variables[part] for part in parts}
    fixed = {part: value for part, value in variables.items() if part not in parts}
    return LearnerState(jnp.zeros((), jnp.int32), trainable, fixed, optimiser.init(trainable))


def make_optimiser(
    *,
    learning_rate: float,
    final_learning_rate: float | None = None,
    steps: int = 0,
    warmup_steps: int = 0,
    weight_decay: float,
    clip_norm: float,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW after global-norm clipping, and its schedule.

    With `final_learning_rate`: a linear warm-up, then a cosine to it over `steps`. Without: constant.
    Weight decay acts on matrices and convolution kernels only, not on biases, norms or token embeddings.
    """
    if final_learning_rate is None:
        schedule: optax.Schedule = optax.constant_schedule(learning_rate)
    else:
        decay = optax.cosine_decay_schedule(
            learning_rate, max(steps - warmup_steps, 1), alpha=final_learning_rate / max(learning_rate, 1e-30)
        )
        warmup = optax.linear_schedule(0.0, learning_rate, max(warmup_steps, 1))
        schedule = optax.join_schedules([warmup, decay], [warmup_steps]) if warmup_steps else decay
    optimiser = optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(schedule, weight_decay=weight_decay, mask=_decayed),
    )
    return optimiser, schedule


def with_critic(
    optimiser: optax.GradientTransformation, *, learning_rate: float, clip_norm: float
) -> optax.GradientTransformation:
    """`optimiser` for the policy's parts, and Adam with a rate and a gradient norm of its own for the value head."""
    critic = optax.chain(optax.clip_by_global_norm(clip_norm), optax.adam(learning_rate))
    return optax.multi_transform(
        {"policy": optimiser, CRITIC: critic},
        lambda trainable: {part: CRITIC if part == CRITIC else "policy" for part in trainable},
    )


def _decayed(params: Any) -> Any:
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: path[-1].endswith("kernel") for path in flat})


def _apply(state: LearnerState, gradients: Any, optimiser: optax.GradientTransformation) -> LearnerState:
    updates, opt_state = optimiser.update(gradients, state.opt_state, state.trainable)
    return state.replace(
        step=state.step + 1, trainable=optax.apply_updates(state.trainable, updates), opt_state=opt_state
    )


def make_mesh(devices: list | None = None) -> Mesh:
    """All devices on one "data" axis."""
    devices = list(jax.devices()) if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def shard(batch: Batch, mesh: Mesh, *, axis: int = 0) -> Batch:
    """Host arrays onto the mesh, split along their dimension `axis`. Raises ValueError when it does not divide."""
    size = mesh.devices.size
    for name, value in batch.items():
        if np.shape(value)[axis] % size:
            raise ValueError(f"{name} has {np.shape(value)[axis]} rows, which {size} devices cannot share evenly")
    return _placed(batch, NamedSharding(mesh, PartitionSpec(*[None] * axis, "data")))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Arrays onto every device of the mesh; several processes must have the same ones."""
    return _placed(tree, NamedSharding(mesh, PartitionSpec()))


def local(tree: Any) -> Any:
    """Replicated arrays as this process can use them without the others."""
    return tree if jax.process_count() == 1 else jax.device_get(tree)


def _placed(tree: Any, sharding: NamedSharding) -> Any:
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def place(value: Any) -> jax.Array:
        if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(value)))
        host = np.asarray(value)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, tree)


def _jit(update: Callable, mesh: Mesh) -> Update:
    if mesh.size == 1:
        # Sharding annotations cost something even on one device: steps took five times as long on a busy CPU.
        return jax.jit(update, donate_argnums=0)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        update,
        in_shardings=(everywhere, NamedSharding(mesh, PartitionSpec("data")), everywhere),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )


def repeated(update: Update, mesh: Mesh) -> Update:
    """`update` over several batches in one call: `batch` has a leading axis of steps, `key` is their keys `[N]`.

    The metrics come back with that axis. Dispatch and the hand-over of a step's many small arrays are paid once: on a
    CPU a third of a small network's time (docs/performance.md). Where `loops.slow_in_a_loop`, give it one step a call.
    """

    def steps(state: LearnerState, batches: Batch, keys: jax.Array):
        return loops.scan(lambda now, each: update(now, *each), state, (batches, keys))

    if mesh.size == 1:
        return jax.jit(steps, donate_argnums=0)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        steps,
        in_shardings=(everywhere, NamedSharding(mesh, PartitionSpec(None, "data")), everywhere),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )


def supervised_update(
    loss: Callable[[Variables, Variables, Batch, jax.Array], Loss],
    optimiser: optax.GradientTransformation,
    mesh: Mesh,
    *,
    precision: str = "default",
    accumulate: int = 1,
) -> Update:
    """One step on `loss(trainable, fixed, batch, key)`; the parts that it says have changed are taken over.

    With `accumulate` parts of the batch go through one after the other, in as much less memory, and their mean gradient
    makes the one step. That is the step of the whole batch where the loss is a mean over its rows; dropout draws
    otherwise, and what moves with a batch (running statistics, a codebook's averages) moves once per part.
    """

    def gradients_of(trainable, fixed, batch, key):
        def loss_fn(trainable):
            found = loss(trainable, fixed, batch, key)
            return found.value, (found.changed, found.metrics)

        (value, (changed, metrics)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(trainable)
        return gradients, {**fixed, **changed}, {"loss": value, **metrics}

    def accumulated(trainable, fixed, batch, key):
        def part(carried, each):
            sums, fixed = carried
            gradients, fixed, metrics = gradients_of(trainable, fixed, *each)
            return (jax.tree.map(jnp.add, sums, gradients), fixed), metrics

        zeros = jax.tree.map(jnp.zeros_like, trainable)
        parts = _parts(batch, accumulate), jax.random.split(key, accumulate)
        (sums, fixed), metrics = loops.scan(part, (zeros, fixed), parts)
        return jax.tree.map(lambda each: each / accumulate, sums), fixed, jax.tree.map(_whole, metrics)

    def update(state: LearnerState, batch: Batch, key: jax.Array):
        step = gradients_of if accumulate == 1 else accumulated
        gradients, fixed, metrics = step(state.trainable, state.fixed, batch, key)
        metrics["grad_norm"] = optax.tree.norm(gradients)
        return _apply(state.replace(fixed=fixed), gradients, optimiser), metrics

    return _jit(at(precision, update), mesh)


def _parts(batch: Batch, count: int) -> Batch:
    """Rows `[B, ...]` as `[count, B / count, ...]`, every `count`-th in one: each device keeps rows of every part."""
    return jax.tree.map(lambda rows: jnp.swapaxes(rows.reshape(-1, count, *rows.shape[1:]), 0, 1), batch)


def _whole(parts: jax.Array) -> jax.Array:
    """Of a metric by part `[count, ...]` the mean where it is a number, else its rows in the order of the batch."""
    if parts.ndim == 1:
        return jnp.mean(parts)
    return jnp.swapaxes(parts, 0, 1).reshape(-1, *parts.shape[2:])


def policy_gradient_update(
    policy: SkillPolicy,
    optimiser: optax.GradientTransformation,
    mesh: Mesh,
    loss: Callable[[jax.Array, Batch], tuple[jax.Array, dict[str, jax.Array]]],
    *,
    temperature: float,
    entropy_bonus: float,
    extra_loss: Callable[[Variables, Batch], tuple[jax.Array, dict[str, jax.Array]]] | None = None,
) -> Update:
    """One step on `loss(log_prob, batch)` of packed skills, less `entropy_bonus` times their mean entropy.

    Batch, all with S rows: `skill`, `log_prob` `[S, K]`, `mask` `[S]`, `support` `[S, K, top_k]` when sampling was
    restricted, and `context` `[S, C, D]` (encoder frozen) or `observation/...` entries (encoder trained too; its
    running statistics stay as they are); and what `loss` reads beside them. The `log_prob` `[S, K]` that the loss is
    given are those of the stored skills under the policy being trained. `extra_loss(trainable, batch)`, a critic's, is
    added.
    """

    def update(state: LearnerState, batch: Batch, key: jax.Array):
        del key  # no dropout: the ratio must be one at the behaviour parameters
        chex.assert_equal_shape([batch["skill"], batch["log_prob"]])

        def loss_fn(trainable):
            variables = {**state.fixed, **trainable}
            context = batch["context"] if "context" in batch else _encode(policy, variables, batch)
            log_prob, entropy = policy.score(
                variables, context, batch["skill"], temperature=temperature, support=batch.get("support")
            )
            value, metrics = loss(log_prob, batch)
            mask = batch["mask"][:, None]
            real = jnp.sum(mask) * entropy.shape[1]
            mean_entropy = jnp.sum(jnp.where(mask > 0, entropy, 0.0)) / jnp.maximum(real, 1.0)
            drift = jnp.max(jnp.where(mask > 0, jnp.abs(log_prob - batch["log_prob"]), 0.0))
            metrics |= {"loss": value, "entropy": mean_entropy, "max_abs_token_log_ratio": drift}
            total = value - entropy_bonus * mean_entropy
            if extra_loss is not None:
                added, more = extra_loss(trainable, batch)
                metrics |= more
                total += added
            return total, metrics

        (_, metrics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.trainable)
        metrics["grad_norm"] = optax.tree.norm(gradients)
        return _apply(state, gradients, optimiser), metrics

    return _jit(update, mesh)


def _encode(policy: SkillPolicy, variables: Variables, batch: Batch) -> jax.Array:
    prefix = "observation/"
    observation = {k.removeprefix(prefix): v for k, v in batch.items() if k.startswith(prefix)}
    return policy.encode(variables, observation)

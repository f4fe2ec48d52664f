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

from cso_jax import objectives
from cso_jax.networks.augment import augment
from cso_jax.policies.quest import policy
from cso_jax.policies.quest.critic import ValueHead
from cso_jax.policies.quest.policy import Networks, Variables
from cso_jax.precision import at, exact

Batch = dict[str, Any]
Update = Callable[["LearnerState", Batch, jax.Array], tuple["LearnerState", dict[str, jax.Array]]]

CODEBOOK_PARTS = ("autoencoder",)
POLICY_PARTS = ("encoder", "prior")
PRIOR_PARTS = ("prior",)
CRITIC = "critic"


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


def shard(batch: Batch, mesh: Mesh) -> Batch:
    """Host arrays onto the mesh, split by their leading dimension. Raises ValueError when it does not divide."""
    size = mesh.devices.size
    for name, value in batch.items():
        if np.shape(value)[0] % size:
            raise ValueError(f"{name} has {np.shape(value)[0]} rows, which {size} devices cannot share evenly")
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))


def replicate(tree: Any, mesh: Mesh) -> Any:
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


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


def codebook_update(
    networks: Networks, optimiser: optax.GradientTransformation, mesh: Mesh, *, precision: str = "default"
) -> Update:
    """One step of Eq. 1. Batch: `chunks` `[B, T, A]`. Metrics hold `codes` `[B, K]`, the indices of the batch, too."""

    def update(state: LearnerState, batch: Batch, key: jax.Array):
        chunks = batch["chunks"]

        def loss_fn(trainable):
            reconstruction, indices = policy.apply(
                networks.autoencoder,
                {"params": trainable["autoencoder"]},
                chunks,
                deterministic=False,
                rngs={"dropout": key},
            )
            return objectives.reconstruction_l1(reconstruction, chunks), indices

        (loss, codes), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.trainable)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradients), "codes": codes}
        return _apply(state, gradients, optimiser), metrics

    return _jit(at(precision, update), mesh)


def imitation_update(
    networks: Networks,
    optimiser: optax.GradientTransformation,
    mesh: Mesh,
    *,
    augment_images: bool,
    precision: str = "default",
) -> Update:
    """One step of Eq. 2 (or Eq. 6) on encoder and prior. Batch: `observation` entries, `skill` `[B, K]`.

    The encoder's running statistics, where it has them, move with the batch.
    """

    def update(state: LearnerState, batch: Batch, key: jax.Array):
        observation = {name: value for name, value in batch.items() if name != "skill"}
        keys = jax.random.split(key, 3)
        if augment_images:
            observation = {
                name: augment(jax.random.fold_in(keys[0], number), value) if value.ndim == 4 else value
                for number, (name, value) in enumerate(sorted(observation.items()))
            }
        normalised = policy.normalise(state.fixed, observation)

        def loss_fn(trainable):
            context, mutated = policy.apply(
                networks.encoder,
                {"params": trainable["encoder"], "batch_stats": state.fixed["batch_stats"]},
                normalised,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": keys[1]},
            )
            logits = policy.apply(
                networks.prior,
                {"params": trainable["prior"]},
                context,
                batch["skill"],
                deterministic=False,
                rngs={"dropout": keys[2]},
            )
            log_prob = jax.nn.log_softmax(logits.astype(jnp.float32))
            chosen = jnp.take_along_axis(log_prob, batch["skill"][..., None], axis=-1)[..., 0]
            accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["skill"])
            return objectives.imitation_nll(chosen), (mutated.get("batch_stats", {}), accuracy)

        (loss, (batch_stats, accuracy)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.trainable)
        state = state.replace(fixed={**state.fixed, "batch_stats": batch_stats})
        metrics = {"loss": loss, "token_accuracy": accuracy, "grad_norm": optax.tree.norm(gradients)}
        return _apply(state, gradients, optimiser), metrics

    return _jit(at(precision, update), mesh)


def imitation_loss(networks: Networks) -> Callable[[Variables, Batch], jax.Array]:
    """The same loss without dropout, augmentation or update: for validation."""

    @jax.jit
    def loss(variables: Variables, batch: Batch) -> jax.Array:
        observation = {name: value for name, value in batch.items() if name != "skill"}
        context = policy.encode(networks, variables, observation)
        log_prob, _ = policy.score(networks, variables, context, batch["skill"], temperature=1.0)
        return objectives.imitation_nll(log_prob)

    return loss


def surrogate_update(
    networks: Networks,
    optimiser: optax.GradientTransformation,
    mesh: Mesh,
    *,
    unit: objectives.Unit,
    clip_low: float,
    clip_high: float,
    average: objectives.Average,
    length_normalise: bool,
    temperature: float,
    entropy_bonus: float,
    freeze_encoder: bool,
    objective: objectives.Objective = "surrogate",
    preference_beta: float = 0.1,
    critic: ValueHead | None = None,
    value_coefficient: float = 0.5,
) -> Update:
    """One step of Eq. 9 at any granularity, or of another objective on the same packed skills.

    Batch, all with S rows: `skill`, `log_prob` `[S, K]`, `advantage`, `episode_id`, `mask` `[S]`, `support`
    `[S, K, top_k]` when sampling was restricted, and `context` `[S, C, D]` (encoder frozen) or `observation/...`
    entries (encoder trained too; its running statistics stay as they are); optionally `episodes` `[S]`, the same number
    throughout, by which means over episodes divide. With `objective="preference"` also `reference_log_prob` `[S, K]`;
    `episode_id` then numbers the pairs and `advantage` is 1 for the success of a pair, -1 for the failure. With a
    `critic` (encoder frozen) also `value_target` `[S]`, and "critic" among the trained parts: half the mean squared
    error of its values joins the loss with `value_coefficient`.
    """

    def policy_loss(log_prob: jax.Array, batch: Batch):
        episode_id, mask, rows = batch["episode_id"], batch["mask"], batch["mask"].shape[0]
        episodes = batch["episodes"][0] if "episodes" in batch else None
        if objective == "preference":
            return objectives.preference_loss(
                log_prob, batch["reference_log_prob"], batch["advantage"], episode_id, mask,
                beta=preference_beta, num_pairs=rows, pairs=episodes,
            )  # fmt: skip
        arguments = (log_prob, batch["log_prob"], batch["advantage"], episode_id, mask)
        if objective == "reinforce":
            return objectives.reinforce_loss(*arguments, average=average, num_episodes=rows, episodes=episodes)
        return objectives.clipped_surrogate(
            *arguments,
            unit=unit,
            clip_low=clip_low,
            clip_high=clip_high,
            average=average,
            length_normalise=length_normalise,
            num_episodes=rows,
            episodes=episodes,
        )

    @exact
    def value_loss(critic: ValueHead, params: Any, batch: Batch) -> jax.Array:
        error = policy.apply(critic, {"params": params}, batch["context"]) - batch["value_target"]
        squares = jnp.where(batch["mask"] > 0, error, 0.0) ** 2
        return 0.5 * jnp.sum(squares) / jnp.maximum(jnp.sum(batch["mask"]), 1.0)

    def update(state: LearnerState, batch: Batch, key: jax.Array):
        del key  # no dropout: the ratio must be one at the behaviour parameters
        chex.assert_equal_shape([batch["skill"], batch["log_prob"]])

        def loss_fn(trainable):
            variables = {**state.fixed, **trainable}
            context = batch["context"] if freeze_encoder else _encode(networks, variables, batch)
            log_prob, entropy = policy.score(
                networks, variables, context, batch["skill"], temperature=temperature, support=batch.get("support")
            )
            loss, metrics = policy_loss(log_prob, batch)
            mask = batch["mask"][:, None]
            real = jnp.sum(mask) * entropy.shape[1]
            mean_entropy = jnp.sum(jnp.where(mask > 0, entropy, 0.0)) / jnp.maximum(real, 1.0)
            drift = jnp.max(jnp.where(mask > 0, jnp.abs(log_prob - batch["log_prob"]), 0.0))
            metrics |= {"loss": loss, "entropy": mean_entropy, "max_abs_token_log_ratio": drift}
            total = loss - entropy_bonus * mean_entropy
            if critic is not None:
                metrics["value_loss"] = value_loss(critic, trainable[CRITIC], batch)
                total += value_coefficient * metrics["value_loss"]
            return total, metrics

        (_, metrics), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.trainable)
        metrics["grad_norm"] = optax.tree.norm(gradients)
        return _apply(state, gradients, optimiser), metrics

    return _jit(update, mesh)


def _encode(networks: Networks, variables: Variables, batch: Batch) -> jax.Array:
    prefix = "observation/"
    observation = {k.removeprefix(prefix): v for k, v in batch.items() if k.startswith(prefix)}
    return policy.encode(networks, variables, observation)

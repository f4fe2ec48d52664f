"""What policies that clone chunks of actions share: one network behind the interface of a policy, its loss its own.

A kind of policy brings a `ChunkNetwork`, a flax module that knows how to be trained on chunks and how to make one; the
`Imitator` here brings everything else. Its variables:

    {"network": params, "batch_stats": running statistics of image trunks,
     "normaliser": {key: {"mean": [P], "std": [P]}},
     "average": {"params", "batch_stats": exponential moving averages, "updates": how many they have had}, if any,
     "task_embedding": [N, E] vectors of the N tasks' sentences, absent where tasks are told apart by id}

Letters: B rows, N observations of a history, T actions per chunk, E executed actions, A action size, P size of a
low-dimensional entry.
"""

import dataclasses
from typing import Any, Literal, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from cso_jax.envs.protocol import EnvSpec
from cso_jax.networks.apply import apply
from cso_jax.networks.augment import augment
from cso_jax.policies.interface import Decision, Loss, Rows, Sampling, Variables, Wants
from cso_jax.policies.observations import fit_normaliser, identity_normaliser, normalise, placeholders
from cso_jax.precision import exact

STAGES = ("demos", "imitation", "rsft")


class ChunkNetwork(Protocol):
    """A flax module with two methods, both on normalised observations (`[B, N, ...]` with a history of N > 1)."""

    def __call__(self, observation: Rows, chunk: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss on chunks `[B, T, A]`, a scalar float32, and metrics; touches every parameter.

        Draws from the streams "noise" and, with `train`, "dropout".
        """

    def act(self, observation: Rows, keys: jax.Array, sampling: Sampling) -> jax.Array:
        """Chunks `[B, T, A]`; row b draws with the PRNG key `keys[b]` alone."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a network is given: the environment's entries, how tasks are told apart, how many steps are looked back."""

    lowdim: tuple[tuple[str, int], ...]
    images: tuple[tuple[str, tuple[int, int, int]], ...]
    task_dim: int
    task_kind: Literal["id", "vector"]
    history: int = 1

    @classmethod
    def of(cls, spec: EnvSpec, num_tasks: int, embedding_dim: int, history: int = 1) -> "Inputs":
        """Those of an environment; `embedding_dim` is 0 where tasks are told apart by id."""
        return cls(
            lowdim=tuple(sorted(spec.lowdim.items())),
            images=tuple(sorted((name, (*shape,)) for name, shape in spec.images.items())),
            task_dim=embedding_dim or num_tasks,
            task_kind="vector" if embedding_dim else "id",
            history=history,
        )

    def placeholders(self, rows: int) -> dict[str, jax.Array]:
        """Observations of zeros, with a task."""
        found = placeholders(dict(self.lowdim), dict(self.images), rows)
        if self.history > 1:
            found = {name: jnp.repeat(value[:, None], self.history, axis=1) for name, value in found.items()}
        task = jnp.zeros((rows,), jnp.int32) if self.task_kind == "id" else jnp.zeros((rows, self.task_dim))
        return found | {"task": task}


@dataclasses.dataclass(frozen=True)
class Imitator:
    """A network with what it reads and predicts. Satisfies `Policy`.

    `average_decay` d > 0 keeps an average of the parameters, one step behind them, and acts by it. Its own decay grows
    to d with its updates n, as min(d, 1 - (1 + n)^-0.75) (Chi et al. 2023), so that the first parameters are forgotten.
    """

    network: Any  # a ChunkNetwork
    inputs: Inputs
    chunk_length: int
    action_dim: int
    average_decay: float = 0.0

    @property
    def wants(self) -> Wants:
        return Wants(self.chunk_length, history=self.inputs.history, target="chunk")

    def init(self, key: jax.Array, spec: EnvSpec, task_embedding: np.ndarray | None = None) -> Variables:
        """Fresh variables; the normaliser is the identity until the demonstrations set it."""
        if task_embedding is not None:
            chex.assert_shape(task_embedding, (None, self.inputs.task_dim))
        observation = self.inputs.placeholders(2)
        chunk = jnp.zeros((2, self.chunk_length, self.action_dim))

        @jax.jit
        def create(key):
            names = ("params", "noise", "dropout")
            keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
            return self.network.init(keys, observation, chunk, train=False)

        created = create(key)
        variables = {
            "network": created["params"],
            "batch_stats": created.get("batch_stats", {}),
            "normaliser": identity_normaliser(spec.lowdim),
        }
        if self.average_decay:
            variables["average"] = {
                "params": jax.tree.map(jnp.copy, created["params"]),
                "batch_stats": jax.tree.map(jnp.copy, variables["batch_stats"]),
                "updates": jnp.zeros((), jnp.float32),
            }
        if task_embedding is not None:
            variables["task_embedding"] = jnp.asarray(task_embedding, jnp.float32)
        return variables

    def trained_parts(self, stage: str, config: ConfigDict) -> tuple[str, ...]:
        """The network, in the stages imitation and rsft. Raises KeyError for another stage."""
        return {"imitation": ("network",), "rsft": ("network",)}[stage]

    def prepare(self, variables: Variables, lowdim: dict[str, np.ndarray], config: ConfigDict) -> Variables:
        """The normaliser fitted to the demonstrations, whatever `config.encoder.normalise` says of other policies."""
        flat = {name: value.reshape(-1, value.shape[-1]) for name, value in lowdim.items()}
        return variables | {"normaliser": fit_normaliser(flat)}

    def loss(
        self, trainable: Variables, fixed: Variables, batch: Rows, key: jax.Array, *, augment_images: bool
    ) -> Loss:
        """The network's own loss on `chunk` `[B, T, A]`; running statistics and average move with the batch."""
        observation = _without_target(batch)
        if augment_images:
            observation = augmented(key, observation, self.inputs)
        dropout, noise = jax.random.split(jax.random.fold_in(key, 2**16))
        (value, metrics), mutated = apply(
            self.network,
            {"params": trainable["network"], "batch_stats": fixed["batch_stats"]},
            normalise(fixed, observation),
            batch["chunk"],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout, "noise": noise},
        )
        changed = {"batch_stats": mutated.get("batch_stats", {})}
        if self.average_decay:
            updates = fixed["average"]["updates"]
            decay = jnp.minimum(self.average_decay, 1.0 - (1.0 + updates) ** -0.75)
            now = {"params": jax.lax.stop_gradient(trainable["network"]), "batch_stats": fixed["batch_stats"]}
            before = {part: fixed["average"][part] for part in now}
            averaged = optax.incremental_update(now, before, 1.0 - decay)
            changed["average"] = {**averaged, "updates": updates + 1.0}
        return Loss(value, changed, metrics)

    def held_out_loss(self, variables: Variables, batch: Rows) -> jax.Array:
        """The same without dropout, augmentation or update, of what acts; what it draws is the same every time."""
        value, _ = apply(
            self.network,
            self._acting(variables),
            normalise(variables, _without_target(batch)),
            batch["chunk"],
            train=False,
            rngs={"noise": jax.random.key(0)},
        )
        return value

    @exact
    def decide(
        self,
        variables: Variables,
        observation: Rows,
        episode_keys: jax.Array,
        decision_index: jax.Array,
        *,
        sampling: Sampling,
        execution_horizon: int,
    ) -> Decision:
        """The beginning of a chunk that the network makes."""
        keys = jax.vmap(lambda key, index: jax.random.fold_in(jax.random.wrap_key_data(key), index))(
            jnp.asarray(episode_keys), jnp.asarray(decision_index)
        )
        chunk = apply(
            self.network,
            self._acting(variables),
            normalise(variables, observation),
            keys,
            sampling,
            method="act",
        )
        chex.assert_shape(chunk, (None, self.chunk_length, self.action_dim))
        return Decision(chunk[:, :execution_horizon])

    def _acting(self, variables: Variables) -> dict[str, Any]:
        if self.average_decay:
            return {part: variables["average"][part] for part in ("params", "batch_stats")}
        return {"params": variables["network"], "batch_stats": variables["batch_stats"]}


def bounds_of(spec: EnvSpec) -> tuple[float, ...] | None:
    """The largest size of an action by dimension, in the units of the chunks: actions are within [-1, 1].

    None where chunks are relative to where the robot is, and so have no bounds of their own.
    """
    if spec.frame is None:
        return (1.0,) * spec.action_dim
    if any(spec.frame.scale) or any(spec.frame.offset):
        return None
    return tuple(1.0 / unit for unit in spec.frame.spread)


def problems_of_chunks(config: ConfigDict) -> list[str]:
    """What is wrong with `config.policy.chunk_length`, one line each."""
    chunk = config.policy.chunk_length
    if config.execution_horizon > chunk:
        return [f"config.execution_horizon is {config.execution_horizon}, but a chunk has {chunk} actions"]
    return []


def normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal `[B, *shape]`, row b from `keys[b]` alone."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def augmented(key: jax.Array, observation: Rows, inputs: Inputs) -> dict[str, Any]:
    """Observations whose images `[B, H, W, 3]` are augmented; of `[B, N, H, W, 3]` all frames of a row alike."""

    def changed(key: jax.Array, images: jax.Array) -> jax.Array:
        if images.ndim == 4:
            return augment(key, images)
        frames = jnp.moveaxis(images, 1, 0)
        return jnp.moveaxis(jax.vmap(augment, in_axes=(None, 0))(key, frames), 0, 1)

    images = dict(inputs.images)
    return {
        name: changed(jax.random.fold_in(key, number), value) if name in images else value
        for number, (name, value) in enumerate(sorted(observation.items()))
    }


def _without_target(batch: Rows) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "chunk"}

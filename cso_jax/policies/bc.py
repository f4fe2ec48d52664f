"""Plain behaviour cloning: an MLP from observations to the next chunk of actions, as a policy of its own.

What the same demonstrations give without skills, sampling or a transformer: the reference beside a base policy's
success. Its variables:

    {"network": params, "batch_stats": running statistics of the image trunk,
     "normaliser": {key: {"mean": [P], "std": [P]}},
     "task_embedding": [N, E] vectors of the N tasks' sentences, absent where tasks are told apart by id}

Letters: B rows, T actions per chunk, E executed actions, A action size, P size of a low-dimensional entry.
"""

import dataclasses
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from cso_jax.envs.protocol import EnvSpec
from cso_jax.networks.apply import apply
from cso_jax.networks.augment import augment
from cso_jax.networks.transformer import Linear, gelu
from cso_jax.networks.vision import ImageEncoder, Norm, Trunk
from cso_jax.policies.interface import Decision, Loss, Rows, Sampling, Variables, Wants
from cso_jax.policies.observations import fit_normaliser, identity_normaliser, normalise, placeholders
from cso_jax.precision import exact

STAGES = ("demos", "imitation")
NETWORK: dict[str, Any] = {
    "hidden": (512, 512, 512),  # widths of the layers between observation and chunk
    "later_weight": 1.0,  # in the loss, of the actions after the executed ones, relative to those
}
DEFAULTS: dict[str, Any] = {"chunk_length": 32, **NETWORK}


def problems(config: ConfigDict) -> list[str]:
    """What is wrong with the section `config.policy`, one line each."""
    chunk = config.policy.chunk_length
    found = network_problems(config, "policy")
    if config.execution_horizon > chunk:
        found.append(f"config.execution_horizon is {config.execution_horizon}, but a chunk has {chunk} actions")
    return found


def network_problems(config: ConfigDict, section: str) -> list[str]:
    """What is wrong with the layers that a section asks for."""
    hidden = config[section].hidden
    if all(isinstance(size, int) and size > 0 for size in hidden):
        return []
    return [f"config.{section}.hidden must hold whole numbers of at least 1; got {hidden}"]


def build(config: ConfigDict, spec: EnvSpec, num_tasks: int, embedding_dim: int = 0) -> "BCPolicy":
    """The policy of `config.policy` for an environment with `num_tasks` tasks."""
    return of_section(config, "policy", config.policy.chunk_length, spec, num_tasks, embedding_dim)


def of_section(
    config: ConfigDict,
    section: str,
    chunk_length: int,
    spec: EnvSpec,
    num_tasks: int,
    embedding_dim: int = 0,
    *,
    history: int = 1,
) -> "BCPolicy":
    """The policy whose layers a section of the config sizes; its cameras are read as `config.encoder` says.

    With `history` N > 1 it is given N observations, as another policy of the run is, and reads the newest.
    """
    network = ChunkNetwork(
        lowdim=tuple(sorted(spec.lowdim)),
        images=tuple(sorted(spec.images)),
        task_dim=embedding_dim or num_tasks,
        task_kind="vector" if embedding_dim else "id",
        hidden=tuple(config[section].hidden),
        chunk_length=chunk_length,
        action_dim=spec.action_dim,
        image_width=config.encoder.image_width,
        norm=config.encoder.norm,
        trunk=config.encoder.trunk,
    )
    return BCPolicy(network, config.execution_horizon, config[section].later_weight, history)


class ChunkNetwork(nn.Module):
    """Observations to chunks `[B, T, A]`: everything that is seen, and the task, through one MLP.

    Reads float32 `[B, P]` under the keys `lowdim`, uint8 `[B, H, W, 3]` under `images`, and under "task" int32 `[B]`
    ids below `task_dim` (`task_kind` "id") or float32 `[B, task_dim]` vectors ("vector").
    """

    lowdim: tuple[str, ...]
    images: tuple[str, ...]
    task_dim: int
    task_kind: Literal["id", "vector"]
    hidden: tuple[int, ...]
    chunk_length: int
    action_dim: int
    image_width: int = 256
    norm: Norm = "batch"
    trunk: Trunk = "resnet"

    @nn.compact
    def __call__(self, observation: Rows, *, train: bool) -> jax.Array:
        """With `norm="batch"` and `train`, "batch_stats" must be mutable to be updated."""
        task = observation["task"]
        chex.assert_rank(task, 1 if self.task_kind == "id" else 2)
        seen = [observation[key] for key in self.lowdim]
        seen.append(jax.nn.one_hot(task, self.task_dim) if self.task_kind == "id" else task)
        for key in self.images:
            pixels = observation[key].astype(jnp.float32) / 255.0
            seen.append(ImageEncoder(self.image_width, self.norm, self.trunk, name=f"image_{key}")(pixels, train=train))
        x = jnp.concatenate(seen, axis=-1)
        for number, size in enumerate(self.hidden):
            x = gelu(Linear(size, name=f"hidden_{number}")(x))
        chunk = Linear(self.chunk_length * self.action_dim, name="chunk")(x)
        return chunk.reshape(-1, self.chunk_length, self.action_dim)


@dataclasses.dataclass(frozen=True)
class BCPolicy:
    """A network, how many actions of its chunk are executed, and what the others weigh. Satisfies `Policy`."""

    network: ChunkNetwork
    execution_horizon: int
    later_weight: float
    history: int = 1

    @property
    def wants(self) -> Wants:
        return Wants(self.network.chunk_length, history=self.history, target="chunk")

    def init(self, key: jax.Array, spec: EnvSpec, task_embedding: np.ndarray | None = None) -> Variables:
        """Fresh variables; the normaliser is the identity until the demonstrations set it."""
        if task_embedding is not None:
            chex.assert_shape(task_embedding, (None, self.network.task_dim))
        by_id = self.network.task_kind == "id"
        observation = placeholders(spec.lowdim, spec.images, 2)
        observation["task"] = jnp.zeros((2,), jnp.int32) if by_id else jnp.zeros((2, self.network.task_dim))
        created = jax.jit(lambda key: self.network.init(key, observation, train=False))(key)
        variables = {
            "network": created["params"],
            "batch_stats": created.get("batch_stats", {}),
            "normaliser": identity_normaliser(spec.lowdim),
        }
        if task_embedding is not None:
            variables["task_embedding"] = jnp.asarray(task_embedding, jnp.float32)
        return variables

    def trained_parts(self, stage: str, config: ConfigDict) -> tuple[str, ...]:
        """The network, in the stage imitation. Raises KeyError for another stage."""
        return {"imitation": ("network",)}[stage]

    def prepare(self, variables: Variables, lowdim: dict[str, np.ndarray], config: ConfigDict) -> Variables:
        """The normaliser fitted to the demonstrations, whatever `config.encoder.normalise` says of other policies."""
        flat = {name: value.reshape(-1, value.shape[-1]) for name, value in lowdim.items()}
        return variables | {"normaliser": fit_normaliser(flat)}

    def loss(
        self, trainable: Variables, fixed: Variables, batch: Rows, key: jax.Array, *, augment_images: bool
    ) -> Loss:
        """The mean absolute error of `chunk` `[B, T, A]`; the trunk's running statistics move with the batch."""
        observation = self._newest(_without_target(batch))
        if augment_images:
            observation = {
                name: augment(jax.random.fold_in(key, number), value) if value.ndim == 4 else value
                for number, (name, value) in enumerate(sorted(observation.items()))
            }
        chunk, mutated = apply(
            self.network,
            {"params": trainable["network"], "batch_stats": fixed["batch_stats"]},
            normalise(fixed, observation),
            train=True,
            mutable=["batch_stats"],
        )
        value, executed = self._errors(chunk, batch["chunk"])
        return Loss(value, {"batch_stats": mutated.get("batch_stats", {})}, {"executed_l1": executed})

    def held_out_loss(self, variables: Variables, batch: Rows) -> jax.Array:
        """The same without augmentation or update: for validation."""
        return self._errors(self.chunks(variables, _without_target(batch)), batch["chunk"])[0]

    def _errors(self, chunk: jax.Array, wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean absolute errors, scalars float32: weighted over the chunk, and of the executed actions alone."""
        chex.assert_equal_shape([chunk, wanted])
        by_action = jnp.mean(jnp.abs(chunk - wanted).astype(jnp.float32), axis=(0, 2))
        executed = jnp.arange(self.network.chunk_length) < self.execution_horizon
        weights = jnp.where(executed, 1.0, self.later_weight)
        return jnp.average(by_action, weights=weights), jnp.average(by_action, weights=executed)

    @exact
    def chunks(self, variables: Variables, observation: Rows) -> jax.Array:
        """Chunks `[B, T, A]` for observations, with running statistics where the trunk has them."""
        return apply(
            self.network,
            {"params": variables["network"], "batch_stats": variables["batch_stats"]},
            normalise(variables, self._newest(observation)),
            train=False,
        )

    def _newest(self, observation: Rows) -> dict[str, Any]:
        seen = (*self.network.lowdim, *self.network.images) if self.history > 1 else ()
        return {name: value[:, -1] if name in seen else value for name, value in observation.items()}

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
        """The beginning of the predicted chunk: nothing is drawn."""
        del episode_keys, decision_index, sampling
        return Decision(self.chunks(variables, observation)[:, :execution_horizon])


def _without_target(batch: Rows) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "chunk"}

"""A policy as docs/how_to_add_a_policy.md asks for it: an MLP that clones chunks, from the last three observations."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from cso_jax.networks.apply import apply
from cso_jax.policies.interface import Decision, Loss, Wants
from cso_jax.policies.observations import fit_normaliser, identity_normaliser, normalise
from cso_jax.precision import exact

STAGES = ("demos", "imitation")
DEFAULTS = {"width": 32, "chunk_length": 8}


class Network(nn.Module):
    width: int
    chunk_length: int
    action_dim: int

    @nn.compact
    def __call__(self, observation):
        flat = [value.reshape(len(value), -1) for name, value in sorted(observation.items()) if name != "task"]
        x = nn.relu(nn.Dense(self.width)(jnp.concatenate(flat, axis=-1)))
        chunk = nn.Dense(self.chunk_length * self.action_dim)(x)
        return chunk.reshape(-1, self.chunk_length, self.action_dim)


def problems(config):
    enough = config.execution_horizon <= config.policy.chunk_length
    return [] if enough else ["config.execution_horizon is more than config.policy.chunk_length"]


def build(config, spec, num_tasks, embedding_dim=0):
    return ToyPolicy(Network(config.policy.width, config.policy.chunk_length, spec.action_dim))


@dataclasses.dataclass(frozen=True)
class ToyPolicy:
    network: Network

    @property
    def wants(self):
        return Wants(self.network.chunk_length, history=3, target="chunk")

    def init(self, key, spec, task_embedding=None):
        observation = {name: jnp.zeros((1, self.wants.history, size)) for name, size in spec.lowdim.items()}
        params = self.network.init(key, observation)["params"]
        return {"network": params, "normaliser": identity_normaliser(spec.lowdim)}

    def trained_parts(self, stage, config):
        return {"imitation": ("network",)}[stage]

    def prepare(self, variables, lowdim, config):
        return variables | {"normaliser": fit_normaliser({k: v.reshape(-1, v.shape[-1]) for k, v in lowdim.items()})}

    def _chunk(self, network, others, rows):
        observation = {name: value for name, value in rows.items() if name != "chunk"}
        return apply(self.network, {"params": network}, normalise(others, observation))

    def loss(self, trainable, fixed, batch, key, *, augment_images):
        chunk = self._chunk(trainable["network"], fixed, batch)
        return Loss(jnp.mean(jnp.abs(chunk - batch["chunk"])), {}, {})

    def held_out_loss(self, variables, batch):
        return jnp.mean(jnp.abs(self._chunk(variables["network"], variables, batch) - batch["chunk"]))

    @exact
    def decide(self, variables, observation, episode_keys, decision_index, *, sampling, execution_horizon):
        chunk: jax.Array = self._chunk(variables["network"], variables, observation)
        return Decision(chunk[:, :execution_horizon])

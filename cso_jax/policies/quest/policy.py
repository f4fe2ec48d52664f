"""The policy as pure functions: encode observations, sample skills, decode chunks, score skills.

This is the one door between the functional core and the host shell, and all of it computes in float32 whatever the
hardware's default (`cso_jax.precision`). A policy is its `Networks` (what to compute) and
its variables (a plain dictionary of arrays):

    {"autoencoder": params, "encoder": params, "prior": params,
     "batch_stats": running statistics of the encoder, "normaliser": {key: {"mean": [P], "std": [P]}},
     "task_embedding": [N, E] vectors of the N tasks' sentences, absent where the encoder learns a row per task id}

Letters: B rows, C context tokens, D width, K tokens per skill, T actions per chunk, E executed actions, A action size.
"""

import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from cso_jax import fsq
from cso_jax.envs.protocol import EnvSpec
from cso_jax.networks.observation import ObservationEncoder
from cso_jax.policies.quest.autoencoder import ActionAutoencoder
from cso_jax.policies.quest.prior import Sample, SkillPrior, entropy_of, log_prob_of
from cso_jax.precision import exact

Variables = dict[str, Any]


def apply(module: nn.Module, variables: Any, *arguments: Any, **keywords: Any) -> Any:
    """A module's method on variables that may be NumPy arrays, as checkpoints are read.

    flax types every `apply` as a union of all that it could return; here it is what the method returns.
    """
    return module.apply(jax.tree.map(jnp.asarray, variables), *arguments, **keywords)


class Networks(NamedTuple):
    """The three networks of a QueST policy; flax modules without parameters."""

    autoencoder: ActionAutoencoder
    encoder: ObservationEncoder
    prior: SkillPrior


def build(config: ConfigDict, spec: EnvSpec, num_tasks: int, embedding_dim: int = 0) -> Networks:
    """The networks of a config for an environment with `num_tasks` tasks.

    `embedding_dim` is the size of the task embeddings, 0 where the encoder learns a row per task id.
    """
    autoencoder = ActionAutoencoder(
        action_dim=spec.action_dim,
        chunk_length=config.autoencoder.chunk_length,
        width=config.autoencoder.width,
        encoder_layers=config.autoencoder.encoder_layers,
        decoder_layers=config.autoencoder.decoder_layers,
        heads=config.autoencoder.heads,
        levels=tuple(config.autoencoder.levels),
        kernels=tuple(config.autoencoder.kernels),
        strides=tuple(config.autoencoder.strides),
        dropout=config.autoencoder.dropout,
    )
    encoder = ObservationEncoder(
        width=config.prior.width,
        lowdim=tuple(sorted(spec.lowdim.items())),
        images=tuple(sorted(spec.images.items())),
        task_dim=embedding_dim or num_tasks,
        task_kind="vector" if embedding_dim else "id",
        image_width=config.encoder.image_width,
        lowdim_width=config.encoder.lowdim_width,
        lowdim_hidden=tuple(config.encoder.lowdim_hidden),
        norm=config.encoder.norm,
        task_in_lowdim=config.encoder.task_in_lowdim,
    )
    prior = SkillPrior(
        vocabulary=fsq.codebook_size(tuple(config.autoencoder.levels)),
        tokens=config.autoencoder.chunk_length // math.prod(config.autoencoder.strides),
        width=config.prior.width,
        layers=config.prior.layers,
        heads=config.prior.heads,
        dropout=config.prior.dropout,
    )
    return Networks(autoencoder, encoder, prior)


def init(networks: Networks, key: jax.Array, spec: EnvSpec, task_embedding: np.ndarray | None = None) -> Variables:
    """Fresh variables; the normaliser is the identity until the demonstrations set it.

    `task_embedding` `[N, E]` float32 is kept with them, for networks that were built for embeddings of size E.
    """
    if task_embedding is not None:
        chex.assert_shape(task_embedding, (None, networks.encoder.task_dim))
    keys = jax.random.split(key, 3)
    autoencoder = networks.autoencoder
    actions = jnp.zeros((2, autoencoder.chunk_length, autoencoder.action_dim), jnp.float32)
    observation = {name: jnp.zeros((2, size), jnp.float32) for name, size in spec.lowdim.items()}
    observation |= {name: jnp.zeros((2, *shape), jnp.uint8) for name, shape in spec.images.items()}
    by_id = networks.encoder.task_kind == "id"
    observation["task"] = jnp.zeros((2,), jnp.int32) if by_id else jnp.zeros((2, networks.encoder.task_dim))

    @jax.jit
    def create(keys):
        encoder = networks.encoder.init(keys[1], observation, train=False)
        context = apply(networks.encoder, encoder, observation, train=False)
        tokens = jnp.zeros((2, networks.prior.tokens), jnp.int32)
        return {
            "autoencoder": autoencoder.init(keys[0], actions, deterministic=True)["params"],
            "encoder": encoder["params"],
            "prior": networks.prior.init(keys[2], context, tokens)["params"],
            "batch_stats": encoder.get("batch_stats", {}),
        }

    variables = create(keys)
    variables["normaliser"] = {
        name: {"mean": jnp.zeros((size,), jnp.float32), "std": jnp.ones((size,), jnp.float32)}
        for name, size in spec.lowdim.items()
    }
    if task_embedding is not None:
        variables["task_embedding"] = jnp.asarray(task_embedding, jnp.float32)
    return variables


def fit_normaliser(lowdim: dict[str, np.ndarray], *, floor: float = 1e-2) -> dict[str, dict[str, np.ndarray]]:
    """Mean and standard deviation per entry of `{key: [N, P]}`.

    `floor` bounds the standard deviation from below: entries that (almost) never move would otherwise turn noise far
    below a millimetre into large inputs.
    """
    return {
        key: {
            "mean": values.mean(axis=0, dtype=np.float64).astype(np.float32),
            "std": np.maximum(values.std(axis=0, dtype=np.float64), floor).astype(np.float32),
        }
        for key, values in lowdim.items()
    }


def normalise(variables: Variables, observation: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """What the encoder reads: low-dimensional entries normalised, the task's id replaced by its embedding, if any."""
    stats = variables["normaliser"]
    ready = {
        key: (value - stats[key]["mean"]) / stats[key]["std"] if key in stats else value
        for key, value in observation.items()
    }
    if "task_embedding" in variables:
        ready["task"] = jnp.asarray(variables["task_embedding"])[observation["task"]]
    return ready


@exact
def encode(networks: Networks, variables: Variables, observation: dict[str, jax.Array]) -> jax.Array:
    """Context `[B, C, D]` of observations (rows stacked), with running statistics where the encoder has them."""
    return apply(
        networks.encoder,
        {"params": variables["encoder"], "batch_stats": variables["batch_stats"]},
        normalise(variables, observation),
        train=False,
    )


@exact
def sample(
    networks: Networks, variables: Variables, context: jax.Array, keys: jax.Array, *, temperature: float, top_k: int
) -> Sample:
    """One skill per row, and the log-probabilities of the distribution that it was drawn from."""
    return apply(
        networks.prior,
        {"params": variables["prior"]},
        context,
        keys,
        temperature=temperature,
        top_k=top_k,
        method="sample",
    )


@exact
def decode(networks: Networks, variables: Variables, skills: jax.Array) -> jax.Array:
    """Chunks `[B, T, A]` of skills `[B, K]`."""
    return apply(networks.autoencoder, {"params": variables["autoencoder"]}, skills, method="decode")


@exact
def tokenise(networks: Networks, variables: Variables, chunks: jax.Array) -> jax.Array:
    """Skills `[B, K]` of chunks `[B, T, A]`, without dropout."""
    return apply(networks.autoencoder, {"params": variables["autoencoder"]}, chunks, method="encode")


@exact
def score(
    networks: Networks,
    variables: Variables,
    context: jax.Array,
    skills: jax.Array,
    *,
    temperature: float,
    support: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies `[B, K]` of given skills under the sampling policy.

    `support` `[B, K, top_k]` is the recorded top-k set; the distribution is renormalised over it, as when sampling.
    """
    chex.assert_rank([context, skills], [3, 2])
    logits = apply(networks.prior, {"params": variables["prior"]}, context, skills, deterministic=True)
    return (
        log_prob_of(logits, skills, temperature=temperature, support=support),
        entropy_of(logits, temperature=temperature, support=support),
    )


class Decision(NamedTuple):
    """What one policy call gives, rows stacked: executed actions `[B, E, A]` and what learning needs of the draw."""

    actions: jax.Array
    skill: jax.Array
    log_prob: jax.Array
    support: jax.Array | None
    context: jax.Array


def decide(
    networks: Networks,
    variables: Variables,
    observation: dict[str, jax.Array],
    episode_keys: jax.Array,
    decision_index: jax.Array,
    *,
    temperature: float,
    top_k: int,
    execution_horizon: int,
) -> Decision:
    """Observe, sample and decode for a batch of episodes.

    Args:
      episode_keys: uint32 `[B, 2]`, one raw PRNG key per episode; with `decision_index` `[B]` it fixes the draw, so a
        row's result depends on its own episode only, not on which episodes share the batch.
    """
    keys = jax.vmap(jax.random.fold_in)(episode_keys, decision_index)
    context = encode(networks, variables, observation)
    drawn = sample(networks, variables, context, keys, temperature=temperature, top_k=top_k)
    chunk = decode(networks, variables, drawn.tokens)
    return Decision(chunk[:, :execution_horizon], drawn.tokens, drawn.log_prob, drawn.support, context)

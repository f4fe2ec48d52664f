"""ACT, action chunking with transformers (Zhao et al. 2023): a conditional VAE of chunks.

In training an encoder sees task, low-dimensional observations and the chunk, and gives the mean and log-variance of a
style z; a transformer turns z and one token per input into the chunk. Acting takes z = 0. Loss (the paper's Eq. 1 and
Algorithm 1):

    L1(chunk, predicted) + kl_weight * KL(N(mu, exp(log_var)) || N(0, 1))

`DEFAULTS` are the values of QueST's public reimplementation, except that it executes 2 actions of a chunk and this
library `config.execution_horizon`. That code takes the output of the *first* decoder layer, so that six others train on
nothing; `decoder_output="first"` has that one layer only, "last" is the default. `PAPER` are those of the CSO paper's
Appendix F, whose description ("256 bins") is of no published ACT: actions are classified into bins by cross-entropy.

Letters: B rows, T actions per chunk, A action size, I inputs, D width, Z size of the style.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from cso_jax import rules
from cso_jax.envs.protocol import EnvSpec
from cso_jax.networks.post_norm import DecoderLayer, EncoderLayer
from cso_jax.networks.tokens import InputTokens, TaskToken
from cso_jax.networks.transformer import Linear, positional_encoding
from cso_jax.networks.vision import Norm, Trunk
from cso_jax.policies.imitator import STAGES, Imitator, Inputs, bounds_of, problems_of_chunks
from cso_jax.policies.interface import Rows, Sampling

__all__ = ["DEFAULTS", "PAPER", "STAGES", "build", "problems"]

DEFAULTS: dict[str, Any] = {
    "chunk_length": 16,
    "width": 256,
    "heads": 8,
    "feed_forward": 1024,
    "style_layers": 4,  # of the encoder that sees the chunk, in training only
    "encoder_layers": 4,
    "decoder_layers": 7,
    "style": 32,  # size of z
    "kl_weight": 10.0,
    "dropout": 0.1,
    "decoder_output": "last",
    "bins": 0,  # per action dimension, over [-1, 1]; 0: the chunk is regressed
}
PAPER: dict[str, Any] = {"chunk_length": 20, "encoder_layers": 4, "decoder_layers": 8, "bins": 256}


def problems(config: ConfigDict) -> list[str]:
    """What is wrong with the section `config.policy`, one line each."""
    found = problems_of_chunks(config)
    found += rules.one_of("policy.decoder_output", config.policy.decoder_output, ("first", "last"))
    if config.policy.width % config.policy.heads:
        found.append(
            f"config.policy.width is {config.policy.width}, not a multiple of config.policy.heads = "
            f"{config.policy.heads}"
        )
    return found


def build(config: ConfigDict, spec: EnvSpec, num_tasks: int, embedding_dim: int = 0) -> Imitator:
    """The policy of `config.policy`; its cameras and states are read as `config.encoder` says."""
    own = config.policy
    inputs = Inputs.of(spec, num_tasks, embedding_dim)
    bounds = bounds_of(spec)
    if own.bins and bounds is None:
        raise ValueError("config.policy.bins needs actions with bounds, and chunks are relative here: set it to 0")
    network = ACTNetwork(
        inputs=inputs,
        chunk_length=own.chunk_length,
        action_dim=spec.action_dim,
        width=own.width,
        heads=own.heads,
        feed_forward=own.feed_forward,
        style_layers=own.style_layers,
        encoder_layers=own.encoder_layers,
        decoder_layers=own.decoder_layers if own.decoder_output == "last" else 1,
        style=own.style,
        kl_weight=own.kl_weight,
        dropout=own.dropout,
        bins=own.bins,
        bounds=bounds or (),
        image_width=config.encoder.image_width,
        lowdim_hidden=tuple(config.encoder.lowdim_hidden),
        norm=config.encoder.norm,
        trunk=config.encoder.trunk,
    )
    return Imitator(network, inputs, own.chunk_length, spec.action_dim)


def kl_to_standard_normal(mean: jax.Array, log_var: jax.Array) -> jax.Array:
    """KL(N(mean, exp(log_var)) || N(0, 1)), summed over Z and averaged over rows: `[B, Z]`, twice, to a scalar."""
    chex.assert_equal_shape([mean, log_var])
    return jnp.mean(-0.5 * jnp.sum(1.0 + log_var - mean**2 - jnp.exp(log_var), axis=-1))


def bin_of(actions: jax.Array, bins: int) -> jax.Array:
    """The bin, 0 to bins - 1, of actions, which are clipped to [-1, 1]."""
    return jnp.clip(((actions + 1.0) * (bins / 2)).astype(jnp.int32), 0, bins - 1)


def centre_of(index: jax.Array, bins: int) -> jax.Array:
    """The action in the middle of a bin."""
    return (index + 0.5) * (2.0 / bins) - 1.0


class ACTNetwork(nn.Module):
    """A `ChunkNetwork`."""

    inputs: Inputs
    chunk_length: int
    action_dim: int
    width: int
    heads: int
    feed_forward: int
    style_layers: int
    encoder_layers: int
    decoder_layers: int
    style: int
    kl_weight: float
    dropout: float
    bins: int
    bounds: tuple[float, ...]
    image_width: int = 256
    lowdim_hidden: tuple[int, ...] = ()
    norm: Norm = "batch"
    trunk: Trunk = "resnet"

    def setup(self):
        sizes = (self.width, self.heads, self.feed_forward, self.dropout)
        inputs = self.inputs
        self.see = InputTokens(
            self.width, inputs.lowdim, inputs.images,
            image_width=self.image_width, lowdim_hidden=self.lowdim_hidden, norm=self.norm, trunk=self.trunk,
        )  # fmt: skip
        self.task = TaskToken(self.width, inputs.task_dim, inputs.task_kind)
        self.styling = [EncoderLayer(*sizes) for _ in range(self.style_layers)]
        self.style_query = self.param("style_query", nn.initializers.normal(1.0), (1, self.width))
        self.style_actions, self.style_out = Linear(self.width), Linear(2 * self.style)
        self.style_in = Linear(self.width)
        self.encoding = [EncoderLayer(*sizes) for _ in range(self.encoder_layers)]
        self.decoding = [DecoderLayer(*sizes) for _ in range(self.decoder_layers)]
        tokens = 2 + len(inputs.images) + len(inputs.lowdim)
        self.positions = self.param("positions", nn.initializers.normal(1.0), (tokens, self.width))
        self.queries = self.param("queries", nn.initializers.normal(1.0), (self.chunk_length, self.width))
        self.head = Linear(self.action_dim * max(self.bins, 1))

    def __call__(self, observation: Rows, chunk: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss on chunks `[B, T, A]`; without `train` as acting has it, z = 0 and no KL."""
        chex.assert_shape(chunk, (None, self.chunk_length, self.action_dim))
        seen, task = self.see(observation, train=train), self.task(observation["task"])
        mean, log_var = self._style(seen, task, chunk, train)
        if train:
            noise = jax.random.normal(self.make_rng("noise"), mean.shape)
            style = mean + jnp.exp(0.5 * log_var) * noise
        else:
            style = jnp.zeros_like(mean)
        predicted = self._predict(seen, task, style, train)
        error = self._error(predicted, chunk)
        kl = kl_to_standard_normal(mean, log_var)
        return error + self.kl_weight * kl * train, {"error": error, "kl": kl}

    def act(self, observation: Rows, keys: jax.Array, sampling: Sampling) -> jax.Array:
        """Chunks `[B, T, A]`: nothing is drawn, z is its prior's mean."""
        del keys, sampling
        seen, task = self.see(observation, train=False), self.task(observation["task"])
        predicted = self._predict(seen, task, jnp.zeros((task.shape[0], self.style)), False)
        if not self.bins:
            return predicted
        return centre_of(jnp.argmax(predicted, axis=-1), self.bins) * jnp.asarray(self.bounds)

    def _style(self, seen: jax.Array, task: jax.Array, chunk: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of z, each `[B, Z]`, from task, states (not cameras) and chunk."""
        states = seen[:, len(self.inputs.images) :]
        query = jnp.broadcast_to(self.style_query, (task.shape[0], 1, self.width))
        x = jnp.concatenate([query, task[:, None], states, self.style_actions(chunk)], axis=1)
        positions = positional_encoding(x.shape[1], self.width)
        for layer in self.styling:
            x = layer(x, positions, deterministic=not train)
        mean, log_var = jnp.split(self.style_out(x[:, 0]), 2, axis=-1)
        return mean, log_var

    def _predict(self, seen: jax.Array, task: jax.Array, style: jax.Array, train: bool) -> jax.Array:
        """Chunks `[B, T, A]`, or logits of their bins `[B, T, A, bins]`."""
        memory = jnp.concatenate([self.style_in(style)[:, None], task[:, None], seen], axis=1)
        for layer in self.encoding:
            memory = layer(memory, self.positions, deterministic=not train)
        x = jnp.zeros((task.shape[0], self.chunk_length, self.width))
        for decoder in self.decoding:
            x = decoder(x, memory, self.queries, self.positions, deterministic=not train)
        found = self.head(x)
        return found.reshape(*found.shape[:2], self.action_dim, self.bins) if self.bins else found

    def _error(self, predicted: jax.Array, chunk: jax.Array) -> jax.Array:
        if not self.bins:
            return jnp.mean(jnp.abs(predicted - chunk).astype(jnp.float32))
        wanted = bin_of(chunk / jnp.asarray(self.bounds), self.bins)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(predicted, wanted))

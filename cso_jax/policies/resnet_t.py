"""ResNet-T, the transformer of LIBERO's benchmark (Liu et al. 2023, "ResNet-Transformer"): a mixture of Gaussians.

A token per input and frame, the task among them, goes through a transformer in which a frame sees itself and those
before it; a frame's task token then gives the modes of its action. Loss:

    -log sum_m w_m N(action; b tanh(mu_m), softplus(s_m) + 1e-4)

with b the largest action, in the units of the chunks; without tanh where chunks have no bounds.

`DEFAULTS` are the values of QueST's public configs. In that code actions are not stacked as frames are, so that every
frame's output regresses the *newest* action; `outputs="all"` does so too, "last", the default, trains the newest alone.
It predicts one action (`chunk_length`), so `config.execution_horizon` is 1 unless both are raised.

Letters: B rows, N frames, I inputs of a frame with the task, D width, M modes, T actions per chunk, A action size.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from cso_jax import rules
from cso_jax.envs.protocol import EnvSpec
from cso_jax.networks.tokens import InputTokens, TaskToken
from cso_jax.networks.transformer import Dropout, Linear, gelu, layer_norm
from cso_jax.networks.vision import Norm, Trunk
from cso_jax.policies.imitator import STAGES, Imitator, Inputs, bounds_of, normal, problems_of_chunks
from cso_jax.policies.interface import Rows, Sampling

__all__ = ["DEFAULTS", "STAGES", "build", "problems"]

DEFAULTS: dict[str, Any] = {
    "chunk_length": 1,
    "history": 10,
    "width": 128,
    "layers": 4,
    "heads": 6,
    "head_width": 64,
    "feed_forward": 256,
    "dropout": 0.1,
    "modes": 5,
    "hidden": (1024, 1024),  # of the head
    "least_std": 1e-4,
    "outputs": "last",
}
_POSITION_BASE = 10.0


def problems(config: ConfigDict) -> list[str]:
    """What is wrong with the section `config.policy`, one line each."""
    found = problems_of_chunks(config)
    found += rules.one_of("policy.outputs", config.policy.outputs, ("last", "all"))
    found += rules.at_least_one("policy.history", config.policy.history)
    found += rules.at_least_one("policy.modes", config.policy.modes)
    if config.policy.width % 2:
        found.append(f"config.policy.width must be even; got {config.policy.width}")
    return found


def build(config: ConfigDict, spec: EnvSpec, num_tasks: int, embedding_dim: int = 0) -> Imitator:
    """The policy of `config.policy`; its cameras and states are read as `config.encoder` says."""
    own = config.policy
    inputs = Inputs.of(spec, num_tasks, embedding_dim, own.history)
    network = ResNetTNetwork(
        inputs=inputs,
        chunk_length=own.chunk_length,
        action_dim=spec.action_dim,
        width=own.width,
        layers=own.layers,
        heads=own.heads,
        head_width=own.head_width,
        feed_forward=own.feed_forward,
        dropout=own.dropout,
        modes=own.modes,
        hidden=tuple(own.hidden),
        least_std=own.least_std,
        all_outputs=own.outputs == "all",
        bounds=bounds_of(spec),
        image_width=config.encoder.image_width,
        lowdim_hidden=tuple(config.encoder.lowdim_hidden),
        norm=config.encoder.norm,
        trunk=config.encoder.trunk,
    )
    return Imitator(network, inputs, own.chunk_length, spec.action_dim)


def mixture_log_prob(logits: jax.Array, mean: jax.Array, std: jax.Array, value: jax.Array) -> jax.Array:
    """Log-density of a mixture of Gaussians with independent dimensions.

    Logits `[..., M]`, mean and std `[..., M, A]`, value `[..., A]`, to `[...]`.
    """
    chex.assert_equal_shape([mean, std])
    scaled = (value[..., None, :] - mean) / std
    by_mode = jnp.sum(-0.5 * scaled**2 - jnp.log(std) - 0.5 * np.log(2 * np.pi), axis=-1)
    return jax.nn.logsumexp(jax.nn.log_softmax(logits) + by_mode, axis=-1)


def frame_positions(frames: int, width: int) -> np.ndarray:
    """Sinusoids of the frame's number, float32 `[frames, width]`: sines, then cosines, of base 10."""
    frequency = 1.0 / _POSITION_BASE ** (np.arange(0, width, 2) / width)
    angle = np.arange(frames)[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)


class _Layer(nn.Module):
    """Pre-norm attention, whose heads have a width of their own, and feed-forward: `[B, S, D] -> [B, S, D]`."""

    heads: int
    head_width: int
    feed_forward: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, mask: np.ndarray, *, deterministic: bool) -> jax.Array:
        width = x.shape[-1]
        drop = Dropout(self.dropout)
        attention = nn.MultiHeadDotProductAttention(
            self.heads, qkv_features=self.heads * self.head_width, out_features=width, use_bias=False,
            dropout_rate=self.dropout, name="attention",
        )  # fmt: skip
        y = layer_norm("norm1")(x)
        x = x + drop(attention(y, mask=jnp.asarray(mask), deterministic=deterministic), deterministic=deterministic)
        y = gelu(Linear(self.feed_forward, name="linear1")(layer_norm("norm2")(x)))
        y = Linear(width, name="linear2")(drop(y, deterministic=deterministic))
        return x + drop(y, deterministic=deterministic)


class ResNetTNetwork(nn.Module):
    """A `ChunkNetwork`."""

    inputs: Inputs
    chunk_length: int
    action_dim: int
    width: int
    layers: int
    heads: int
    head_width: int
    feed_forward: int
    dropout: float
    modes: int
    hidden: tuple[int, ...]
    least_std: float
    all_outputs: bool
    bounds: tuple[float, ...] | None
    image_width: int = 256
    lowdim_hidden: tuple[int, ...] = ()
    norm: Norm = "batch"
    trunk: Trunk = "resnet"

    def setup(self):
        inputs = self.inputs
        self.see = InputTokens(
            self.width, inputs.lowdim, inputs.images, history=inputs.history,
            image_width=self.image_width, lowdim_hidden=self.lowdim_hidden, norm=self.norm, trunk=self.trunk,
        )  # fmt: skip
        self.task = TaskToken(self.width, inputs.task_dim, inputs.task_kind)
        self.transforming = [
            _Layer(self.heads, self.head_width, self.feed_forward, self.dropout) for _ in range(self.layers)
        ]
        self.head_layers = [Linear(size) for size in self.hidden]
        self.head_out = Linear(self.hidden[-1])  # without an activation after it, as in LIBERO's head
        size = self.chunk_length * self.action_dim
        self.weights, self.means, self.stds = Linear(self.modes), Linear(self.modes * size), Linear(self.modes * size)

    def __call__(self, observation: Rows, chunk: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The negative log-likelihood of the chunk, a mean over rows (and frames)."""
        chex.assert_shape(chunk, (None, self.chunk_length, self.action_dim))
        logits, mean, std = self._mixtures(observation, train)
        if not (self.all_outputs and train):
            logits, mean, std = logits[:, -1:], mean[:, -1:], std[:, -1:]
        wanted = chunk.reshape(chunk.shape[0], 1, -1)
        likely = mixture_log_prob(logits, mean, std, jnp.broadcast_to(wanted, (*logits.shape[:2], wanted.shape[-1])))
        return -jnp.mean(likely.astype(jnp.float32)), {}

    def act(self, observation: Rows, keys: jax.Array, sampling: Sampling) -> jax.Array:
        """Chunks `[B, T, A]`: a mode, then an action; at temperature 0 the mean of the likeliest mode."""
        logits, mean, std = (value[:, -1] for value in self._mixtures(observation, False))
        if sampling.temperature == 0.0:
            mode = jnp.argmax(logits, axis=-1)
        else:
            mode = jax.vmap(jax.random.categorical)(keys, logits / sampling.temperature)
        mean, std = (jnp.take_along_axis(value, mode[:, None, None], axis=1)[:, 0] for value in (mean, std))
        noise = normal(jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys), mean.shape[1:])
        drawn = mean + sampling.temperature * std * noise
        return drawn.reshape(-1, self.chunk_length, self.action_dim)

    def _mixtures(self, observation: Rows, train: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Logits `[B, N, M]`, means and standard deviations `[B, N, M, T * A]` of every frame."""
        frames = self.inputs.history
        seen = self.see(observation, train=train)
        seen = seen.reshape(seen.shape[0], frames, -1, self.width)
        task = jnp.broadcast_to(self.task(observation["task"])[:, None, None], (seen.shape[0], frames, 1, self.width))
        x = jnp.concatenate([task, seen], axis=2)
        x = x + frame_positions(frames, self.width)[None, :, None]
        inputs = x.shape[2]
        x = x.reshape(x.shape[0], frames * inputs, self.width)
        frame_of = np.arange(frames * inputs) // inputs
        mask = frame_of[None, None, :, None] >= frame_of[None, None, None, :]
        for layer in self.transforming:
            x = layer(x, mask, deterministic=not train)
        x = x.reshape(x.shape[0], frames, inputs, self.width)[:, :, 0]
        for linear in self.head_layers:
            x = jax.nn.relu(linear(x))
        x = self.head_out(x)
        shape = (*x.shape[:2], self.modes, -1)
        std = jax.nn.softplus(self.stds(x)).reshape(shape) + self.least_std
        mean = self.means(x).reshape(shape)
        if self.bounds is not None:
            mean = jnp.tanh(mean) * jnp.tile(jnp.asarray(self.bounds), self.chunk_length)
        return self.weights(x), mean, std

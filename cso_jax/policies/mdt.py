"""A policy in the style of MDT (Reuss et al. 2024): a transformer that denoises chunks, by the equations of EDM.

An encoder reads task and observations, a decoder the noisy chunk; the size of the noise conditions the decoder's
normalisation. With x a chunk, e ~ N(0, 1) and a noise of size s (Karras et al. 2022, Table 1 and Eq. 7 and 8),

    c_skip = d^2 / (s^2 + d^2),   c_out = s d / sqrt(s^2 + d^2),   c_in = 1 / sqrt(s^2 + d^2),   d = `sigma_data`
    D(x_s; s) = c_skip x_s + c_out F(c_in x_s, ln(s) / 4)
    loss = mean ||F(c_in (x + s e), ln(s) / 4) - (x - c_skip (x + s e)) / c_out||^2

ln s is logistic about ln d with scale 0.5, cut to [`sigma_min`, `sigma_max`]. Acting goes from noise of size
`sigma_max` through sizes s_1 > s_2 > ... in equal ratios to 0, by DDIM in these terms (Lu et al. 2022, Eq. 3.7):

    x_j = (s_j / s_i) x_i + (1 - s_j / s_i) D(x_i; s_i)

`DEFAULTS` are the public code's values for CALVIN; its code for LIBERO was not published. Its two auxiliary losses are
not here: the contrastive one aligns sentences with images of goals, of which LIBERO and MetaWorld have none, the
foresight one needs later frames. Dropout is one rate, there 0.3 in attention and 0.05 to 0.1 elsewhere; gates begin at
zero, as the publication that they are from has them.

Letters: B rows, T actions per chunk, A action size, D width.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from cso_jax.envs.protocol import EnvSpec
from cso_jax.networks.adaptive_norm import AdaptiveDecoderLayer
from cso_jax.networks.apply import apply
from cso_jax.networks.tokens import InputTokens, TaskToken
from cso_jax.networks.transformer import EncoderLayer, Linear, layer_norm, positional_encoding
from cso_jax.networks.unet import step_embedding
from cso_jax.networks.vision import Norm, Trunk
from cso_jax.policies.imitator import STAGES, Imitator, Inputs, normal, problems_of_chunks
from cso_jax.policies.interface import Rows, Sampling

__all__ = ["DEFAULTS", "STAGES", "build", "problems"]

DEFAULTS: dict[str, Any] = {
    "chunk_length": 10,
    "width": 512,
    "heads": 8,
    "encoder_layers": 4,
    "decoder_layers": 6,
    "dropout": 0.1,
    "sigma_data": 0.5,  # about the standard deviation of actions
    "sigma_min": 0.001,
    "sigma_max": 80.0,
    "denoising_steps": 10,  # when acting
    "average_decay": 0.999,
}
_SCALE = 0.5  # of the logistic distribution of ln s in training


def problems(config: ConfigDict) -> list[str]:
    """What is wrong with the section `config.policy`, one line each."""
    own = config.policy
    found = problems_of_chunks(config)
    if own.width % (2 * own.heads):
        found.append(f"config.policy.width must be a multiple of twice the {own.heads} heads; got {own.width}")
    if not 0 < own.sigma_min < own.sigma_max:
        found.append(
            f"config.policy.sigma_min must lie between 0 and config.policy.sigma_max = {own.sigma_max:g}; "
            f"got {own.sigma_min:g}"
        )
    if own.sigma_data <= 0:
        found.append(f"config.policy.sigma_data must be above 0; got {own.sigma_data:g}")
    if own.denoising_steps < 2:
        found.append(f"config.policy.denoising_steps must be 2 or more; got {own.denoising_steps}")
    return found


def build(config: ConfigDict, spec: EnvSpec, num_tasks: int, embedding_dim: int = 0) -> Imitator:
    """The policy of `config.policy`; its cameras and states are read as `config.encoder` says."""
    own = config.policy
    inputs = Inputs.of(spec, num_tasks, embedding_dim)
    network = MDTNetwork(
        inputs=inputs,
        chunk_length=own.chunk_length,
        action_dim=spec.action_dim,
        width=own.width,
        heads=own.heads,
        encoder_layers=own.encoder_layers,
        decoder_layers=own.decoder_layers,
        dropout=own.dropout,
        sigma_data=own.sigma_data,
        sigma_min=own.sigma_min,
        sigma_max=own.sigma_max,
        denoising_steps=own.denoising_steps,
        image_width=config.encoder.image_width,
        lowdim_hidden=tuple(config.encoder.lowdim_hidden),
        norm=config.encoder.norm,
        trunk=config.encoder.trunk,
    )
    return Imitator(network, inputs, own.chunk_length, spec.action_dim, average_decay=own.average_decay)


def preconditioning(sigma: jax.Array, sigma_data: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """c_skip, c_out and c_in of noise of the sizes `sigma`, whatever their shape."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / jnp.sqrt(total), 1.0 / jnp.sqrt(total)


def noise_sizes(key: jax.Array, count: int, sigma_data: float, smallest: float, largest: float) -> jax.Array:
    """Sizes `[count]` of noise for training: log-logistic about `sigma_data`, cut to [smallest, largest]."""
    low, high = (1.0 / (1.0 + (sigma_data / edge) ** (1.0 / _SCALE)) for edge in (smallest, largest))
    share = jax.random.uniform(key, (count,), minval=low, maxval=high)
    # float32 draws close to 1 have a logit beyond the edge.
    return jnp.clip(sigma_data * jnp.exp(_SCALE * jax.scipy.special.logit(share)), smallest, largest)


def denoising_sizes(smallest: float, largest: float, steps: int) -> np.ndarray:
    """The sizes of noise that acting goes through, `[steps + 1]`: in equal ratios, and 0 at the end."""
    return np.append(np.geomspace(largest, smallest, steps), 0.0)


def ddim_step(x: jax.Array, clean: jax.Array, now: Any, then: Any) -> jax.Array:
    """From x `[B, T, A]` with noise of size `now` to one with noise of size `then`, given the chunk in it."""
    ratio = then / now
    return ratio * x + (1.0 - ratio) * clean


class MDTNetwork(nn.Module):
    """A `ChunkNetwork`."""

    inputs: Inputs
    chunk_length: int
    action_dim: int
    width: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    dropout: float
    sigma_data: float
    sigma_min: float
    sigma_max: float
    denoising_steps: int
    image_width: int = 256
    lowdim_hidden: tuple[int, ...] = ()
    norm: Norm = "batch"
    trunk: Trunk = "resnet"

    def setup(self):
        inputs = self.inputs
        self.see = InputTokens(
            self.width, inputs.lowdim, inputs.images,
            image_width=self.image_width, lowdim_hidden=self.lowdim_hidden, norm=self.norm, trunk=self.trunk,
        )  # fmt: skip
        self.task = TaskToken(self.width, inputs.task_dim, inputs.task_kind)
        tokens = 1 + len(inputs.lowdim) + len(inputs.images)
        self.positions = self.param("positions", nn.initializers.normal(0.02), (tokens, self.width))
        sizes = (self.width, self.heads, self.dropout)
        self.encoding = [EncoderLayer(*sizes) for _ in range(self.encoder_layers)]
        self.encoded = layer_norm()
        self.denoiser = Denoiser(*sizes, layers=self.decoder_layers, action_dim=self.action_dim)

    def __call__(self, observation: Rows, chunk: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean squared error of F; one size and one noise per row."""
        chex.assert_shape(chunk, (None, self.chunk_length, self.action_dim))
        size_key, noise_key = jax.random.split(self.make_rng("noise"))
        sigma = noise_sizes(size_key, chunk.shape[0], self.sigma_data, self.sigma_min, self.sigma_max)[:, None, None]
        noisy = chunk + sigma * jax.random.normal(noise_key, chunk.shape)
        skip, out, into = preconditioning(sigma, self.sigma_data)
        found = self.denoiser(into * noisy, sigma[:, 0, 0], self._memory(observation, train), deterministic=not train)
        return jnp.mean((found - (chunk - skip * noisy) / out).astype(jnp.float32) ** 2), {}

    def act(self, observation: Rows, keys: jax.Array, sampling: Sampling) -> jax.Array:
        """Chunks `[B, T, A]` from noise that is `sampling.temperature` times its standard deviation."""
        memory = self._memory(observation, False)
        sizes = jnp.asarray(denoising_sizes(self.sigma_min, self.sigma_max, self.denoising_steps), jnp.float32)
        denoiser, variables = self.denoiser.unbind()

        def step(x, at):
            now, then = at
            skip, out, into = preconditioning(now, self.sigma_data)
            clean = skip * x + out * apply(denoiser, variables, into * x, jnp.broadcast_to(now, (x.shape[0],)), memory)
            return ddim_step(x, clean, now, then), None

        start = sampling.temperature * self.sigma_max * normal(keys, (self.chunk_length, self.action_dim))
        chunk, _ = jax.lax.scan(step, start, (sizes[:-1], sizes[1:]))
        return chunk

    def _memory(self, observation: Rows, train: bool) -> jax.Array:
        """What the decoder attends to, `[B, 1 + inputs, D]`: the task first."""
        seen, task = self.see(observation, train=train), self.task(observation["task"])
        x = jnp.concatenate([task[:, None], seen], axis=1) + self.positions
        for layer in self.encoding:
            x = layer(x, causal=False, deterministic=not train)
        return self.encoded(x)


class Denoiser(nn.Module):
    """F: noisy chunks `[B, T, A]` times c_in, the size of their noise `[B]` and a memory `[B, M, D]` to `[B, T, A]`."""

    width: int
    heads: int
    dropout: float
    layers: int
    action_dim: int

    @nn.compact
    def __call__(
        self, chunk: jax.Array, sigma: jax.Array, memory: jax.Array, *, deterministic: bool = True
    ) -> jax.Array:
        size = Linear(2 * self.width, name="size_1")(step_embedding(jnp.log(sigma) / 4.0, self.width))
        size = Linear(self.width, name="size_2")(jax.nn.mish(size))
        x = Linear(self.width, name="actions_in")(chunk) + positional_encoding(chunk.shape[1], self.width)
        for number in range(self.layers):
            x = AdaptiveDecoderLayer(self.width, self.heads, self.dropout, name=f"layer_{number}")(
                x, memory, size, deterministic=deterministic
            )
        return Linear(self.action_dim, name="actions_out")(layer_norm("norm")(x))

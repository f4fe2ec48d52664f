"""Diffusion Policy (Chi et al. 2023): chunks drawn by reversing a diffusion, a 1-D U-Net over their actions.

Training (DDPM, Ho et al. 2020, Eq. 14) adds noise e ~ N(0, 1) of a random step k to a chunk x,

    x_k = sqrt(abar_k) x + sqrt(1 - abar_k) e,        loss = mean ||e - e_theta(x_k, k, observation)||^2

with the squared-cosine schedule of Nichol and Dhariwal (2021, Eq. 17). Acting starts from noise and takes few DDIM
steps (Song et al. 2021, Eq. 12 with sigma = 0): with x0 = (x_k - sqrt(1 - abar_k) e_theta) / sqrt(abar_k), clipped,

    x_j = sqrt(abar_j) x0 + sqrt(1 - abar_j) e_theta

`DEFAULTS` are the values of QueST's public reimplementation, except that it executes 2 actions of a chunk and this
library `config.execution_horizon`. That code makes an average of the parameters and never uses it; here the policy acts
by one (`average_decay`, 0 for none). `PAPER` is the CSO paper's Appendix F, with 16 executed actions.

Letters: B rows, T actions per chunk, A action size, G size of the condition.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from cso_jax.envs.protocol import EnvSpec
from cso_jax.networks.apply import apply
from cso_jax.networks.tokens import InputTokens, TaskToken
from cso_jax.networks.transformer import Linear
from cso_jax.networks.unet import UNet1D
from cso_jax.networks.vision import Norm, Trunk
from cso_jax.policies.imitator import STAGES, Imitator, Inputs, bounds_of, normal, problems_of_chunks
from cso_jax.policies.interface import Rows, Sampling

__all__ = ["DEFAULTS", "PAPER", "STAGES", "build", "problems"]

DEFAULTS: dict[str, Any] = {
    "chunk_length": 32,
    "widths": (256, 512, 1024),  # of the U-Net's levels
    "condition": 256,  # size of the observation, and of the task
    "diffusion_steps": 100,
    "denoising_steps": 10,  # when acting
    "clip": 1.0,  # of the chunk while it is denoised, times the largest action; 0: none, as for chunks without bounds
    "average_decay": 0.995,
}
PAPER: dict[str, Any] = {"chunk_length": 32}
_GROUPS = 8


def problems(config: ConfigDict) -> list[str]:
    """What is wrong with the section `config.policy`, one line each."""
    own = config.policy
    found = problems_of_chunks(config)
    if not own.widths or any(width < 1 or width % _GROUPS for width in own.widths):
        found.append(f"config.policy.widths must hold multiples of {_GROUPS}; got {tuple(own.widths)}")
    multiple = 2 ** (len(own.widths) - 1)
    if own.chunk_length % multiple:
        found.append(
            f"config.policy.chunk_length must be a multiple of {multiple} for {len(own.widths)} widths; "
            f"got {own.chunk_length}"
        )
    if not 1 <= own.denoising_steps <= own.diffusion_steps:
        found.append(
            f"config.policy.denoising_steps must be 1 to config.policy.diffusion_steps = {own.diffusion_steps}; "
            f"got {own.denoising_steps}"
        )
    return found


def build(config: ConfigDict, spec: EnvSpec, num_tasks: int, embedding_dim: int = 0) -> Imitator:
    """The policy of `config.policy`; its cameras and states are read as `config.encoder` says."""
    own = config.policy
    inputs = Inputs.of(spec, num_tasks, embedding_dim)
    network = DiffusionNetwork(
        inputs=inputs,
        chunk_length=own.chunk_length,
        action_dim=spec.action_dim,
        widths=tuple(own.widths),
        condition=own.condition,
        diffusion_steps=own.diffusion_steps,
        denoising_steps=own.denoising_steps,
        bounds=bounds_of(spec) if own.clip else None,
        clip=own.clip,
        image_width=config.encoder.image_width,
        lowdim_hidden=tuple(config.encoder.lowdim_hidden),
        norm=config.encoder.norm,
        trunk=config.encoder.trunk,
    )
    return Imitator(network, inputs, own.chunk_length, spec.action_dim, average_decay=own.average_decay)


def cosine_schedule(steps: int) -> np.ndarray:
    """abar `[steps]`, float64: the share of the chunk's variance that is left after steps 1, 2, ...

    From betas 1 - f(i + 1) / f(i), at most 0.999, of f(i) = cos^2((i / steps + 0.008) / 1.008 * pi / 2).
    """
    share = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1.0 - share[1:] / share[:-1], 0.999)
    found: np.ndarray = np.cumprod(1.0 - betas)
    return found


def denoising_order(diffusion_steps: int, denoising_steps: int) -> np.ndarray:
    """The steps that acting takes, int `[denoising_steps]`, from noisy to clean: evenly spaced from 0 on."""
    spacing = diffusion_steps / denoising_steps
    found: np.ndarray = np.round(np.arange(denoising_steps) * spacing)[::-1].astype(np.int32)
    return found


def ddim_step(x: jax.Array, noise: jax.Array, now: Any, then: Any, limit: Any = None) -> jax.Array:
    """From x `[B, T, A]` with share `now` of the chunk's variance to one with share `then`, given the noise in it.

    The chunk is kept within `limit`, a number or one `[A]` per dimension.
    """
    clean = (x - jnp.sqrt(1.0 - now) * noise) / jnp.sqrt(now)
    if limit is not None:
        clean = jnp.clip(clean, -limit, limit)
    return jnp.sqrt(then) * clean + jnp.sqrt(1.0 - then) * noise


class DiffusionNetwork(nn.Module):
    """A `ChunkNetwork`."""

    inputs: Inputs
    chunk_length: int
    action_dim: int
    widths: tuple[int, ...]
    condition: int
    diffusion_steps: int
    denoising_steps: int
    bounds: tuple[float, ...] | None
    clip: float
    image_width: int = 256
    lowdim_hidden: tuple[int, ...] = ()
    norm: Norm = "batch"
    trunk: Trunk = "resnet"

    def setup(self):
        inputs = self.inputs
        self.see = InputTokens(
            self.condition, inputs.lowdim, inputs.images,
            image_width=self.image_width, lowdim_hidden=self.lowdim_hidden, norm=self.norm, trunk=self.trunk,
        )  # fmt: skip
        self.seen = Linear(self.condition)
        self.task = TaskToken(self.condition, inputs.task_dim, inputs.task_kind)
        self.unet = UNet1D(self.widths, groups=_GROUPS)

    def __call__(self, observation: Rows, chunk: jax.Array, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean squared error of the predicted noise; one step and one noise per row."""
        chex.assert_shape(chunk, (None, self.chunk_length, self.action_dim))
        step_key, noise_key = jax.random.split(self.make_rng("noise"))
        steps = jax.random.randint(step_key, (chunk.shape[0],), 0, self.diffusion_steps)
        noise = jax.random.normal(noise_key, chunk.shape)
        share = jnp.asarray(cosine_schedule(self.diffusion_steps), jnp.float32)[steps][:, None, None]
        noisy = jnp.sqrt(share) * chunk + jnp.sqrt(1.0 - share) * noise
        predicted = self.unet(noisy, steps, self._condition(observation, train))
        return jnp.mean((predicted - noise).astype(jnp.float32) ** 2), {}

    def act(self, observation: Rows, keys: jax.Array, sampling: Sampling) -> jax.Array:
        """Chunks `[B, T, A]` from noise that is `sampling.temperature` times its standard deviation."""
        condition = self._condition(observation, False)
        share = cosine_schedule(self.diffusion_steps)
        order = denoising_order(self.diffusion_steps, self.denoising_steps)
        now = jnp.asarray(share[order], jnp.float32)
        then = jnp.asarray(np.append(share[order[1:]], 1.0), jnp.float32)
        limit = None if self.bounds is None else self.clip * jnp.asarray(self.bounds)
        unet, variables = self.unet.unbind()

        def step(x, at):
            number, now, then = at
            noise = apply(unet, variables, x, jnp.broadcast_to(number, (x.shape[0],)), condition)
            return ddim_step(x, noise, now, then, limit), None

        start = sampling.temperature * normal(keys, (self.chunk_length, self.action_dim))
        chunk, _ = jax.lax.scan(step, start, (jnp.asarray(order), now, then))
        return chunk

    def _condition(self, observation: Rows, train: bool) -> jax.Array:
        tokens = self.see(observation, train=train)
        return jnp.concatenate(
            [self.seen(tokens.reshape(tokens.shape[0], -1)), self.task(observation["task"])], axis=-1
        )

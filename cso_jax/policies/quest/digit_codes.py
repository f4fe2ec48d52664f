"""Codes as independent digits: what a token's distribution is under a digit head, without ever writing out V codes.

A code's logit is the sum of its digits' logits there, so its softmax over the codes is the product of the digits'
softmaxes. Draws, log-probabilities and entropies take sum(levels) numbers a token, 23 for (8, 5, 5, 5), where the codes
are 1,000: most of what a decision costs on a CPU (docs/performance.md). Top-k breaks the product.

`prior.draw`, `log_prob_of` and `entropy_of` are the same of V logits. S is sum(levels): logits come level by level.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from cso_jax import fsq

Levels = tuple[int, ...]


def log_prob_of(logits: jax.Array, tokens: jax.Array, levels: Levels, *, temperature: float | jax.Array) -> jax.Array:
    """Log-probability `[...]` of the codes `tokens [...]` under digits' `logits [..., S]`, as of V logits."""
    chex.assert_shape(logits, (*tokens.shape, sum(levels)))
    tokens = tokens.astype(jnp.int32)
    if is_greedy(temperature):
        log_prob = jnp.where(tokens == likeliest(logits, levels), 0.0, -jnp.inf)
        return jnp.where(jnp.isnan(logits).any(axis=-1), jnp.nan, log_prob).astype(jnp.float32)
    digits = fsq.indices_to_digits(tokens, levels)
    found = jnp.zeros(tokens.shape, jnp.float32)
    for number, log_probs in enumerate(_log_softmaxes(logits, levels, temperature)):
        found += jnp.take_along_axis(log_probs, digits[..., number, None], axis=-1)[..., 0]
    return found


def entropy_of(logits: jax.Array, levels: Levels, *, temperature: float | jax.Array) -> jax.Array:
    """Entropy in nats `[...]` of the distributions over codes that digits' `logits [..., S]` stand for."""
    if is_greedy(temperature):
        return jnp.zeros(logits.shape[:-1], jnp.float32)
    found = jnp.zeros(logits.shape[:-1], jnp.float32)
    for log_probs in _log_softmaxes(logits, levels, temperature):
        found -= jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
    return found


def draw(logits: jax.Array, keys: chex.PRNGKey, levels: Levels, *, temperature: float | jax.Array) -> jax.Array:
    """One code per row of digits' `logits [B, S]`, `[B]` int32, with one key per row."""
    chex.assert_rank(logits, 2)
    if is_greedy(temperature):
        return likeliest(logits, levels)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:]))(keys)
    return likeliest(logits.astype(jnp.float32) / temperature + noise, levels)


def likeliest(logits: jax.Array, levels: Levels) -> jax.Array:
    """The code `[...]` int32 whose every digit has the highest of its level's `logits [..., S]`."""
    digits = jnp.stack([jnp.argmax(level, axis=-1) for level in _split(logits, levels)], axis=-1)
    return fsq.digits_to_indices(digits, levels)


def is_greedy(temperature: float | jax.Array) -> bool:
    """Whether a temperature is known to be 0, when a program is traced."""
    return not isinstance(temperature, jax.core.Tracer) and bool(temperature == 0)


def _log_softmaxes(logits: jax.Array, levels: Levels, temperature: float | jax.Array) -> list[jax.Array]:
    return [jax.nn.log_softmax(level / temperature, axis=-1) for level in _split(logits.astype(jnp.float32), levels)]


def _split(logits: jax.Array, levels: Levels) -> list[jax.Array]:
    return jnp.split(logits, np.cumsum(levels)[:-1], axis=-1)

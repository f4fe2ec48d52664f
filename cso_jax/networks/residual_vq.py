"""Residual vector quantisation with codebooks that follow the data (van den Oord et al. 2017; Zeghidour et al. 2021).

    r_1 = z,   k_q = argmin_k |r_q - e_q[k]|^2,   r_{q+1} = r_q - e_q[k_q],   quantised = sum_q e_q[k_q]

Codebooks are no parameters: they are moving averages of what is assigned to them, in a dictionary of arrays

    {"embedding": [Q, V, D], "counts": [Q, V], "sums": [Q, V, D], "updates": []}

that starts from rows of the first batch. Letters: B batch, Q codebooks, V codes of each, D size of a latent.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

Codebooks = dict[str, jax.Array]
_EPSILON = 1e-5


def empty_codebooks(count: int, codes: int, size: int) -> Codebooks:
    """Codebooks that have seen nothing yet."""
    zeros = jnp.zeros((count, codes, size), jnp.float32)
    return {"embedding": zeros, "counts": jnp.zeros((count, codes)), "sums": zeros, "updates": jnp.zeros(())}


def quantise(latents: jax.Array, embedding: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Codes `[B, Q]` int32, residuals `[B, Q, D]` that each codebook was given, and what it chose `[B, Q, D]`."""
    chex.assert_rank([latents, embedding], [2, 3])
    codes, residuals, chosen = [], [], []
    rest = latents
    for book in embedding:
        distance = jnp.sum(book**2, axis=-1) - 2.0 * rest @ book.T  # less |r|^2, which is the same for all codes
        code = jnp.argmin(distance, axis=-1).astype(jnp.int32)
        residuals.append(rest)
        codes.append(code)
        chosen.append(book[code])
        rest = rest - book[code]
    return jnp.stack(codes, axis=1), jnp.stack(residuals, axis=1), jnp.stack(chosen, axis=1)


def lookup(embedding: jax.Array, codes: jax.Array) -> jax.Array:
    """The sum of the codes' embeddings: `[Q, V, D]` and `[B, Q]` to `[B, D]`."""
    chex.assert_shape(codes, (None, embedding.shape[0]))
    return sum(book[codes[:, number]] for number, book in enumerate(embedding))


def started(books: Codebooks, latents: jax.Array, key: jax.Array) -> Codebooks:
    """The same codebooks once they have had an update, else ones that hold residuals of randomly chosen latents."""
    codes = books["embedding"].shape[1]

    def from_batch() -> Codebooks:
        rest, found = latents, []
        for number in range(books["embedding"].shape[0]):
            rows = jax.random.choice(jax.random.fold_in(key, number), len(rest), (codes,), replace=len(rest) < codes)
            found.append(rest[rows])
            code, _, _ = quantise(rest, rest[rows][None])
            rest = rest - rest[rows][code[:, 0]]
        embedding = jnp.stack(found)
        return books | {"embedding": embedding, "sums": embedding, "counts": jnp.ones_like(books["counts"])}

    return jax.lax.cond(books["updates"] == 0, from_batch, lambda: dict(books))


def followed(books: Codebooks, codes: jax.Array, residuals: jax.Array, decay: float) -> Codebooks:
    """The codebooks after one step of their moving averages, with Laplace smoothing of the counts.

    n <- d n + (1 - d) #,   m <- d m + (1 - d) sum r,   e = m / n', n' = (n + eps) / (N + V eps) N with N the sum of n.
    """
    assigned = jax.nn.one_hot(codes, books["embedding"].shape[1], axis=-1)  # [B, Q, V]
    counts = decay * books["counts"] + (1.0 - decay) * jnp.sum(assigned, axis=0)
    sums = decay * books["sums"] + (1.0 - decay) * jnp.einsum("bqv,bqd->qvd", assigned, residuals)
    total = jnp.sum(counts, axis=-1, keepdims=True)
    smoothed = (counts + _EPSILON) / (total + counts.shape[-1] * _EPSILON) * total
    return {
        "embedding": sums / smoothed[..., None],
        "counts": counts,
        "sums": sums,
        "updates": books["updates"] + 1.0,
    }


def straight_through(latents: jax.Array, quantised: jax.Array) -> jax.Array:
    """The quantised `[B, D]`, whose gradient is that of the latents (Bengio et al. 2013)."""
    return latents + jax.lax.stop_gradient(quantised - latents)


def rotated(latents: jax.Array, quantised: jax.Array) -> jax.Array:
    """The quantised `[B, D]` as the latents turned and stretched (Fifty et al. 2024, "the rotation trick").

    q = (|q| / |z|) R z with R = I - 2 r r^T + 2 q^ z^^T, r = (z^ + q^) / |z^ + q^|, hats for unit vectors. R and the
    stretch are constants to the gradient, which so keeps its angle to the vector.
    """

    def unit(x: Any) -> jax.Array:
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)

    fixed, target = jax.lax.stop_gradient(latents), jax.lax.stop_gradient(quantised)
    from_, to = unit(fixed), unit(target)
    between = unit(from_ + to)
    stretch = jnp.linalg.norm(target, axis=-1, keepdims=True) / jnp.maximum(
        jnp.linalg.norm(fixed, axis=-1, keepdims=True), 1e-6
    )

    def along(x: jax.Array, direction: jax.Array) -> jax.Array:
        return jnp.sum(x * direction, axis=-1, keepdims=True)

    turned = latents - 2.0 * along(latents, between) * between + 2.0 * along(latents, from_) * to
    return stretch * turned

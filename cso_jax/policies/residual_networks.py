"""Networks of skill policies on a residual codebook: autoencoder of chunks, history of observations, prior of codes.

Letters: B rows, N observations, C = N + 1 context tokens, D width, Q codebooks, V codes of each, T actions per chunk, A
action size, L size of a latent.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from cso_jax.networks.tokens import InputTokens, TaskToken
from cso_jax.networks.transformer import EncoderLayer, Linear, layer_norm
from cso_jax.networks.vision import Norm, Trunk
from cso_jax.policies.imitator import Inputs
from cso_jax.policies.interface import Rows
from cso_jax.policies.quest.prior import Sample, draw, entropy_of, log_prob_of


class _MLP(nn.Module):
    hidden: tuple[int, ...]
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for number, size in enumerate(self.hidden):
            x = jax.nn.relu(Linear(size, name=f"hidden_{number}")(x))
        return Linear(self.features, name="out")(x)


class ChunkAutoencoder(nn.Module):
    """Chunks `[B, T, A]` to latents `[B, L]` and back."""

    chunk_length: int
    action_dim: int
    hidden: tuple[int, ...]
    size: int

    def setup(self):
        self.encoder = _MLP(self.hidden, self.size)
        self.decoder = _MLP(self.hidden, self.chunk_length * self.action_dim)

    def encode(self, chunk: jax.Array) -> jax.Array:
        chex.assert_shape(chunk, (None, self.chunk_length, self.action_dim))
        return self.encoder(chunk.reshape(chunk.shape[0], -1))

    def decode(self, latent: jax.Array) -> jax.Array:
        return self.decoder(latent).reshape(-1, self.chunk_length, self.action_dim)

    def __call__(self, chunk: jax.Array) -> jax.Array:
        return self.decode(self.encode(chunk))


class HistoryEncoder(nn.Module):
    """Observations `[B, N, ...]` to context `[B, N + 1, width]`: the task, then a token per step, oldest first."""

    inputs: Inputs
    width: int
    image_width: int
    lowdim_hidden: tuple[int, ...]
    norm: Norm
    trunk: Trunk

    @nn.compact
    def __call__(self, observation: Rows, *, train: bool) -> jax.Array:
        inputs = self.inputs
        seen = InputTokens(
            self.width, inputs.lowdim, inputs.images, history=inputs.history,
            image_width=self.image_width, lowdim_hidden=self.lowdim_hidden, norm=self.norm, trunk=self.trunk,
            name="see",
        )(observation, train=train)  # fmt: skip
        seen = Linear(self.width, name="seen")(seen.reshape(seen.shape[0], inputs.history, -1))
        task = TaskToken(self.width, inputs.task_dim, inputs.task_kind, name="task")(observation["task"])
        return jnp.concatenate([task[:, None], seen], axis=1)


class CodePrior(nn.Module):
    """Context `[B, C, D]` to logits of the codes, and the offset of a chunk given its codes.

    `sequential`: a codebook's logits know the codes before it; otherwise they are independent given the context.
    """

    books: int
    codes: int
    chunk_length: int
    action_dim: int
    width: int
    layers: int
    heads: int
    out: int
    hidden: tuple[int, ...]
    dropout: float
    sequential: bool
    context: int

    def setup(self):
        self.positions = self.param("positions", nn.initializers.normal(0.02), (self.context, self.width))
        self.blocks = [EncoderLayer(self.width, self.heads, self.dropout) for _ in range(self.layers)]
        self.last = layer_norm()
        self.project = Linear(self.out)
        self.code_heads = [_MLP(self.hidden, self.codes) for _ in range(self.books)]
        if self.sequential and self.books > 1:
            shape = (self.books - 1, self.codes, self.out)
            self.embeddings = self.param("embeddings", nn.initializers.normal(0.02), shape)
        # An offset per code and codebook, summed over the codebooks.
        self.offset_head = _MLP(self.hidden, self.books * self.codes * self.chunk_length * self.action_dim)

    def hidden_of(self, context: jax.Array, *, deterministic: bool) -> jax.Array:
        """What the newest observation's token has seen, `[B, out]`."""
        x = context + self.positions
        for block in self.blocks:
            x = block(x, causal=True, deterministic=deterministic)
        return self.project(self.last(x[:, -1]))

    def logits_of(self, hidden: jax.Array, codes: jax.Array, book: int) -> jax.Array:
        """Logits `[B, V]` of codebook `book`; of `codes` `[B, Q]` those before it are read, if any are."""
        if self.sequential:
            for earlier in range(book):
                hidden = hidden + self.embeddings[earlier][codes[:, earlier]]
        return self.code_heads[book](hidden)

    def all_logits(self, hidden: jax.Array, codes: jax.Array) -> jax.Array:
        """Logits `[B, Q, V]` given the codes `[B, Q]` themselves."""
        return jnp.stack([self.logits_of(hidden, codes, book) for book in range(self.books)], axis=1)

    def offset_of(self, hidden: jax.Array, codes: jax.Array) -> jax.Array:
        """The offset `[B, T, A]` of the chunk with these codes."""
        table = self.offset_head(hidden).reshape(hidden.shape[0], self.books, self.codes, -1)
        chosen = jnp.take_along_axis(table, codes[:, :, None, None], axis=2)[:, :, 0]
        return jnp.sum(chosen, axis=1).reshape(-1, self.chunk_length, self.action_dim)

    def drawn(self, hidden: jax.Array, keys: jax.Array, temperature: float, top_k: int) -> Sample:
        """One code per codebook and row, with the distributions they were drawn from."""
        codes = jnp.zeros((hidden.shape[0], self.books), jnp.int32)
        parts: list[tuple[jax.Array, ...]] = []
        supports: list[Any] = []
        for book in range(self.books):
            logits = self.logits_of(hidden, codes, book)
            book_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, book)
            code, support = draw(logits, book_keys, temperature=temperature, top_k=min(top_k, self.codes))
            codes = codes.at[:, book].set(code)
            supports.append(support)
            parts.append((
                log_prob_of(logits, code, temperature=temperature, support=support),
                entropy_of(logits, temperature=temperature, support=support),
            ))  # fmt: skip
        log_prob, entropy = (jnp.stack(column, axis=1) for column in zip(*parts, strict=True))
        support = None if supports[0] is None else jnp.stack(supports, axis=1)
        return Sample(codes, log_prob, support, entropy)

    def sample(self, context: jax.Array, keys: jax.Array, *, temperature: float, top_k: int) -> Sample:
        """As `drawn`, of contexts."""
        return self.drawn(self.hidden_of(context, deterministic=True), keys, temperature, top_k)

    def teacher_forced(self, context: jax.Array, codes: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Logits `[B, Q, V]` of given codes."""
        return self.all_logits(self.hidden_of(context, deterministic=deterministic), codes)

    def offset(self, context: jax.Array, codes: jax.Array) -> jax.Array:
        """As `offset_of`, of contexts."""
        return self.offset_of(self.hidden_of(context, deterministic=True), codes)

    def __call__(
        self, context: jax.Array, codes: jax.Array, keys: jax.Array, *, deterministic: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Logits of given codes, codes that are drawn without a gradient, and their offset: what imitation trains."""
        hidden = self.hidden_of(context, deterministic=deterministic)
        drawn = jax.lax.stop_gradient(self.drawn(hidden, keys, 1.0, 0).tokens)
        return self.all_logits(hidden, codes), drawn, self.offset_of(hidden, drawn)

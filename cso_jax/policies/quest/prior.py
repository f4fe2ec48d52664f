"""The skill prior: an autoregressive transformer over the K skill tokens of a decision (paper section E.1, Eq. 2).

The behaviour policy is the policy in the ratio: temperature and top-k change what is sampled, so they belong to the
distribution whose log-probabilities are stored at rollout and recomputed at the update. `log_prob_of` and
`entropy_of` are the only definition of it, called by the sampler and by the learner; where digits are independent
(`SkillPrior.by_digit`), those of `digit_codes`.

Letters: B batch, C context tokens, K skill tokens, V vocabulary, D width, k top-k.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cso_jax import fsq
from cso_jax.networks.transformer import (
    Dropout,
    EncoderLayer,
    KeyValueCache,
    Linear,
    empty_cache,
    layer_norm,
    positional_encoding,
)
from cso_jax.policies.quest import digit_codes
from cso_jax.policies.quest.digit_codes import is_greedy

Head = Literal["flat", "digits", "both"]


class Sample(NamedTuple):
    """What `SkillPrior.sample` drew, with the distribution it was drawn from."""

    tokens: jax.Array  # [B, K] int32
    log_prob: jax.Array  # [B, K] float32
    support: jax.Array | None  # [B, K, k] int32, the top-k sets in falling order of logit; None without top-k
    entropy: jax.Array  # [B, K] float32, of the distributions sampled from


def log_prob_of(
    logits: jax.Array, tokens: jax.Array, *, temperature: float | jax.Array = 1.0, support: jax.Array | None = None
) -> jax.Array:
    """Log-probability `[..., K]` of `tokens [..., K]` under softmax(`logits [..., K, V]` / temperature).

    With `support [..., K, k]` the distribution is restricted to those tokens; a token outside has log-probability
    -inf. A temperature of 0 (known at trace time, not traced) is the greedy policy: 0 for the argmax, else -inf.
    Where logits are NaN so is the log-probability, at every temperature.
    """
    _check_shapes(logits, tokens, support)
    tokens = tokens.astype(jnp.int32)
    if is_greedy(temperature):
        log_prob = jnp.where(tokens == jnp.argmax(logits, axis=-1), 0.0, -jnp.inf)
        return jnp.where(jnp.isnan(logits).any(axis=-1), jnp.nan, log_prob).astype(jnp.float32)
    log_probs = _log_softmax(logits, temperature, support)
    if support is None:
        return jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]
    chosen = support == tokens[..., None]
    log_prob = jnp.sum(jnp.where(chosen, log_probs, 0.0), axis=-1)
    return jnp.where(jnp.any(chosen, axis=-1), log_prob, -jnp.inf)


def entropy_of(
    logits: jax.Array, *, temperature: float | jax.Array = 1.0, support: jax.Array | None = None
) -> jax.Array:
    """Entropy in nats `[..., K]` of the distributions that `log_prob_of` describes."""
    _check_shapes(logits, None, support)
    if is_greedy(temperature):
        return jnp.zeros(logits.shape[:-1], jnp.float32)
    log_probs = _log_softmax(logits, temperature, support)
    # An impossible token adds nothing (0 log 0 = 0), neither here nor to the gradient.
    return -jnp.sum(jnp.exp(log_probs) * jnp.where(log_probs == -jnp.inf, 0.0, log_probs), axis=-1)


def draw(
    logits: jax.Array, keys: chex.PRNGKey, *, temperature: float | jax.Array, top_k: int
) -> tuple[jax.Array, jax.Array | None]:
    """Draws one token per row: (tokens `[B]` int32, support `[B, k]` int32 or None) from `logits [B, V]`.

    One key per row, so that a row's draw does not depend on the other rows of the batch.
    """
    chex.assert_rank(logits, 2)
    support = jax.lax.top_k(logits, top_k)[1].astype(jnp.int32) if top_k else None
    if is_greedy(temperature):
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), support
    choice = jax.vmap(jax.random.categorical)(keys, _log_softmax(logits, temperature, support)).astype(jnp.int32)
    if support is None:
        return choice, None
    return jnp.take_along_axis(support, choice[:, None], axis=-1)[:, 0], support


class SkillPrior(nn.Module):
    """Causal pre-norm transformer over `[context, start, i0 .. i(K-2)]` that predicts `i0 .. i(K-1)`.

    Positions count from 0 at the start token; the context tokens have none. Dropout once over the whole input, then
    inside the layers.

    `head` says what the network knows of a code. "flat", the published one: a row of an embedding table and an output
    of its own for each of the V codes. "digits": a code is one digit per FSQ level; its embedding is the sum of its
    digits' embeddings and its logit the sum of its digits' logits. "both": the sum of the two.

    A `guide_sharpness` above 0: the prior is told the digits, as real numbers, that a regression of the chunk has in
    the codebook. Each digit of a token's codes loses logit with the squared distance from there: one step off, by a
    sharpness that starts at `guide_sharpness` and that the network learns, for each level from what it knows at that
    token. All its outputs start at zero, so that the likeliest skill is at first that of the regressed chunk.
    """

    levels: tuple[int, ...] = (8, 5, 5, 5)
    tokens: int = 8
    width: int = 384
    layers: int = 6
    heads: int = 6
    dropout: float = 0.1
    head: Head = "flat"
    guide_sharpness: float = 0.0

    @property
    def guided(self) -> bool:
        return self.guide_sharpness > 0

    @property
    def vocabulary(self) -> int:
        """V, the number of codes."""
        return fsq.codebook_size(self.levels)

    def by_digit(self, support: jax.Array | None = None, *, top_k: int = 0) -> bool:
        """Whether tokens that are drawn so have independent digits: `digit_codes` does with the digits' logits then."""
        return self.head == "digits" and support is None and not top_k

    def setup(self):
        if self.head not in get_args(Head):
            raise ValueError(f"head must be one of {', '.join(get_args(Head))}; got {self.head!r}")
        if self.head != "digits":
            # torch's default for embeddings, N(0, 1); the extra last row is the start token.
            self.tok_emb = self.param("tok_emb", nn.initializers.normal(1.0), (self.vocabulary + 1, self.width))
            self.code_head = self._output(self.vocabulary, "head")
        if self.head != "flat":
            initial = nn.initializers.normal(len(self.levels) ** -0.5)  # so that the sum has variance 1
            self.digit_emb = self.param("digit_emb", initial, (sum(self.levels), self.width))
            self.start_emb = self.param("start_emb", nn.initializers.normal(1.0), (self.width,))
            self.digit_head = self._output(sum(self.levels), "digit_head")
        if self.guided:
            self.guide_proj = Linear(self.width)
            self.sharpness_head = self._output(len(self.levels), "sharpness_head")
        self.blocks = [EncoderLayer(self.width, self.heads, self.dropout) for _ in range(self.layers)]
        self.lnf = layer_norm()
        self.input_dropout = Dropout(self.dropout)

    def __call__(
        self,
        context: jax.Array,
        tokens: jax.Array,
        guide: jax.Array | None = None,
        *,
        deterministic: bool = True,
        by_digit: bool = False,
    ) -> jax.Array:
        """Teacher forcing: `context [B, C, D]` and the skill `tokens [B, K]` to logits `[B, K, V]` for those tokens.

        The last token only serves as a target. `guide [B, K, len(levels)]` are each token's digits of the regressed
        chunk, after the tokens before it. Needs a "dropout" rng when not deterministic. With `by_digit` the logits are
        the digits', `[B, K, sum(levels)]`.
        """
        chex.assert_shape(context, (None, None, self.width))
        chex.assert_shape(tokens, (context.shape[0], self.tokens))
        self._check_guide(guide)
        start = jnp.full((tokens.shape[0], 1), self.vocabulary, tokens.dtype)
        embedded = self._embed(jnp.concatenate([start, tokens[:, :-1]], axis=1), guide)
        embedded = embedded + positional_encoding(self.tokens, self.width)
        x = jnp.concatenate([context, embedded], axis=1)
        x = self.input_dropout(x, deterministic=deterministic)
        for block in self.blocks:
            x = block(x, causal=True, deterministic=deterministic)
        return self._logits(self.lnf(x[:, context.shape[1] :]), guide, by_digit)

    def sample(
        self,
        context: jax.Array,
        keys: chex.PRNGKey,
        guide: Callable[[jax.Array], jax.Array] | None = None,
        *,
        temperature: float | jax.Array = 1.0,
        top_k: int = 0,
    ) -> Sample:
        """Draws skills for `context [B, C, D]` with one PRNG key per row (typed `[B]` or raw uint32 `[B, 2]`).

        `guide` gives the digits `[B, K, len(levels)]` for tokens `[B, K]`, of which those that are not drawn yet are 0:
        it must not look at the token it is asked for, nor at later ones. Keys and values of earlier tokens are cached.
        `top_k` = 0 samples from the whole vocabulary; a temperature of 0 is greedy. Token t of a row uses
        `fold_in(key, t)`.
        """
        chex.assert_shape(context, (None, None, self.width))
        self._check_guide(guide)
        batch = context.shape[0]
        chex.assert_axis_dimension(keys, 0, batch)
        if not 0 <= top_k <= self.vocabulary:
            raise ValueError(f"top_k must lie in 0..{self.vocabulary}, got {top_k}")
        model, variables = self.unbind()  # lax.scan must not run bound flax methods
        positions = positional_encoding(self.tokens, self.width)
        by_digit = self.by_digit(top_k=top_k)

        def step(carry, t):
            previous, so_far, caches = carry
            logits, caches = model.apply(
                variables,
                previous,
                positions[t],
                caches,
                context.shape[1] + t,
                guide if guide is None else guide(so_far)[:, t],
                by_digit,
                method="_next_logits",
            )
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
            if by_digit:
                token, support = digit_codes.draw(logits, step_keys, self.levels, temperature=temperature), None
                log_prob = digit_codes.log_prob_of(logits, token, self.levels, temperature=temperature)
                entropy = digit_codes.entropy_of(logits, self.levels, temperature=temperature)
            else:
                token, support = draw(logits, step_keys, temperature=temperature, top_k=top_k)
                log_prob = log_prob_of(logits, token, temperature=temperature, support=support)
                entropy = entropy_of(logits, temperature=temperature, support=support)
            return (token, so_far.at[:, t].set(token), caches), (token, log_prob, support, entropy)

        start = jnp.full((batch,), self.vocabulary, jnp.int32)
        carry = (start, jnp.zeros((batch, self.tokens), jnp.int32), self._prefill(context))
        _, (tokens, log_prob, support, entropy) = jax.lax.scan(step, carry, jnp.arange(self.tokens))
        support = None if support is None else jnp.moveaxis(support, 0, 1)
        return Sample(tokens.T, log_prob.T, support, entropy.T)

    def _prefill(self, context: jax.Array) -> list[KeyValueCache]:
        """The caches of all layers after the context tokens."""
        batch, length, _ = context.shape
        caches, x = [], context
        for block in self.blocks:
            x, cache = block.extend(x, empty_cache(batch, length + self.tokens, self.width, self.heads), 0)
            caches.append(cache)
        return caches

    def _next_logits(
        self, previous, position, caches, slot, guide=None, by_digit=False
    ) -> tuple[jax.Array, list[KeyValueCache]]:
        """Logits `[B, V]` of the token after `previous [B]`, whose place in the whole sequence is `slot`.

        `guide [B, len(levels)]` are this token's rows, where there is a guide.
        """
        x = (self._embed(previous, guide) + position)[:, None, :]
        updated = []
        for block, cache in zip(self.blocks, caches, strict=True):
            x, cache = block.extend(x, cache, slot)
            updated.append(cache)
        return self._logits(self.lnf(x[:, 0]), guide, by_digit), updated

    def _output(self, size: int, name: str) -> nn.Module:
        return Linear(size, zero_bias=self.guided, zero_kernel=self.guided, name=name)

    def _check_guide(self, guide: object) -> None:
        if (guide is not None) != self.guided:
            raise ValueError(f"a guide belongs to a guide_sharpness above 0; it is {self.guide_sharpness}")

    def _embed(self, tokens: jax.Array, guide: jax.Array | None) -> jax.Array:
        """Embeddings `[..., D]` of tokens `[...]`, V for the start token, with what guides the ones after them."""
        total = jnp.zeros((), jnp.float32) if guide is None else self.guide_proj(guide)
        if self.head != "digits":
            total = total + self.tok_emb[tokens]
        if self.head != "flat":
            first_rows = jnp.asarray(np.cumsum([0, *self.levels[:-1]]), jnp.int32)
            digits = self.digit_emb[fsq.indices_to_digits(tokens, self.levels) + first_rows].sum(axis=-2)
            total = total + jnp.where((tokens == self.vocabulary)[..., None], self.start_emb, digits)
        return total

    def _logits(self, hidden: jax.Array, guide: jax.Array | None, by_digit: bool = False) -> jax.Array:
        """Logits `[..., V]` of hidden states `[..., D]`, of the tokens that rows of the guide belong to.

        With `by_digit` those of the digits `[..., sum(levels)]`, level by level.
        """
        flat = self.code_head(hidden) if self.head != "digits" else jnp.zeros((), jnp.float32)
        if self.head == "flat" and guide is None:
            return flat
        by_level = [jnp.zeros((*hidden.shape[:-1], level), hidden.dtype) for level in self.levels]
        if self.head != "flat":
            by_level = jnp.split(self.digit_head(hidden), np.cumsum(self.levels)[:-1], axis=-1)
        if guide is not None:
            sharpness = self.guide_sharpness * jnp.exp(self.sharpness_head(hidden))
            by_level = [
                logits - sharpness[..., i, None] * (jnp.arange(level) - guide[..., i, None]) ** 2
                for i, (logits, level) in enumerate(zip(by_level, self.levels, strict=True))
            ]
        of_digits = jnp.concatenate(by_level, axis=-1)
        if by_digit:
            return of_digits
        # One product: sums that are broadcast to V would be computed anew by everything that reads the logits.
        return flat + of_digits @ jnp.asarray(_codes_of_digits(self.levels))


def _codes_of_digits(levels: tuple[int, ...]) -> np.ndarray:
    """`[sum(levels), V]`, 1 where a level's digit is that of the code: the first level varies fastest."""
    digits = np.unravel_index(np.arange(math.prod(levels)), levels, order="F")
    return np.concatenate(
        [np.eye(level, dtype=np.float32)[:, digit] for level, digit in zip(levels, digits, strict=True)]
    )


def _log_softmax(logits: jax.Array, temperature: float | jax.Array, support: jax.Array | None) -> jax.Array:
    logits = logits.astype(jnp.float32)
    if support is not None:
        logits = jnp.take_along_axis(logits, support, axis=-1)
    return jax.nn.log_softmax(logits / temperature, axis=-1)


def _check_shapes(logits: jax.Array, tokens: jax.Array | None, support: jax.Array | None) -> None:
    if tokens is not None:
        chex.assert_shape(tokens, logits.shape[:-1])
    if support is not None:
        chex.assert_shape(support, (*logits.shape[:-1], None))

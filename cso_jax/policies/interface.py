"""What a policy offers to the rest: pure functions behind one protocol.

A policy is an immutable, hashable object, so that it can be a static argument of jitted functions. Its methods are pure
functions of its variables, a plain dictionary of arrays whose top-level keys are the policy's parts: "encoder",
"prior", ... A stage trains some of the parts (`trained_parts`) and leaves the others as they are.

A kind of policy is a module that offers `build(config, spec, num_tasks, embedding_dim) -> Policy`; `STAGES`, the names
of the stages of the cascade that it goes through; `DEFAULTS`, its own values of the section `config.policy`; and
`problems(config) -> list[str]`, what is wrong with the values that it reads. `cso_jax.policies.POLICIES` names it.

Letters: B rows, C context tokens, D width, K tokens per skill, T actions per chunk, E executed actions, A action size,
N observations of a history.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

from cso_jax.envs.protocol import EnvSpec

Variables = dict[str, Any]
Rows = Mapping[str, Any]
"""Observations of B rows: the keys of `EnvSpec`, each `[B, ...]` (`[B, N, ...]` with a history), and `task` `[B]`."""


class Wants(NamedTuple):
    """The data that a policy learns from and acts on.

    `chunk_length`: actions from each step on. `history`: the last N simulator steps' observations, oldest first, with
    an axis of their own if N > 1. `target`: the column beside the observations in a batch of demonstrations, "skill"
    `[B, K]` (the chunk, tokenised) or "chunk" `[B, T, A]`; `chunk_in`: the stages in which there are both.
    """

    chunk_length: int
    history: int = 1
    target: Literal["skill", "chunk"] = "chunk"
    chunk_in: tuple[str, ...] = ()


class Sampling(NamedTuple):
    """How a policy draws: temperature 0 is greedy, top-k 0 the whole distribution."""

    temperature: float
    top_k: int


class Decision(NamedTuple):
    """What one policy call gives, rows stacked: executed actions `[B, E, A]` and what learning needs of the draw.

    The latter are there for policies with skills: the skill `[B, K]`, its log-probabilities `[B, K]`, the top-k set it
    was drawn from `[B, K, top_k]` (None where all codes were), the encoder's context `[B, C, D]`.
    """

    actions: jax.Array
    skill: jax.Array | None = None
    log_prob: jax.Array | None = None
    support: jax.Array | None = None
    context: jax.Array | None = None


class Loss(NamedTuple):
    """A loss beside what else its computation gave: parts that change without a gradient, and metrics."""

    value: jax.Array
    changed: dict[str, Any]
    metrics: dict[str, jax.Array]


class ActingPolicy(Protocol):
    """What acts: all that an agent, and so an evaluation, asks of a policy."""

    @property
    def wants(self) -> Wants: ...

    def decide(
        self,
        variables: Variables,
        observation: Rows,
        episode_keys: jax.Array,
        decision_index: jax.Array,
        *,
        sampling: Sampling,
        execution_horizon: int,
    ) -> Decision:
        """Observe and act for a batch of episodes.

        `episode_keys` uint32 `[B, 2]`, one raw PRNG key per episode; with `decision_index` `[B]` it fixes the draw, so
        a row's result depends on its own episode only, not on which episodes share the batch.
        """


class Policy(ActingPolicy, Protocol):
    """Any policy that can be trained by imitation, evaluated and served."""

    def init(self, key: jax.Array, spec: EnvSpec, task_embedding: np.ndarray | None = None) -> Variables:
        """Fresh variables. `task_embedding` `[N, E]` float32 are vectors of the tasks' sentences, None for ids."""

    def trained_parts(self, stage: str, config: ConfigDict) -> tuple[str, ...]:
        """The parts that a stage trains; it freezes all others."""

    def prepare(self, variables: Variables, lowdim: dict[str, np.ndarray], config: ConfigDict) -> Variables:
        """Variables with what is fitted to the demonstrations' observations `{key: [N, P]}` before imitation."""

    def loss(
        self, trainable: Variables, fixed: Variables, batch: Rows, key: jax.Array, *, augment_images: bool
    ) -> Loss:
        """The loss of imitation on a batch of rows with their target, with dropout and image augmentation."""

    def held_out_loss(self, variables: Variables, batch: Rows) -> jax.Array:
        """The same without dropout, augmentation or update: for validation. Scalar float32."""


class SkillPolicy(Policy, Protocol):
    """A policy that acts in skills, sequences of K discrete tokens: what R-SFT and SPO refine."""

    @property
    def codes(self) -> int:
        """The size of the vocabulary of tokens."""

    @property
    def codebook_parts(self) -> tuple[str, ...]:
        """The parts that `tokenise` and `decode` read, which the stage codebook makes."""

    def codebook_loss(
        self,
        trainable: Variables,
        fixed: Variables,
        batch: Rows,
        key: jax.Array,
        *,
        weight: jax.Array | None = None,
        mixed_share: float = 0.0,
        squared_weight: float = 0.0,
    ) -> Loss:
        """The loss of the stage codebook on `chunk` `[B, T, A]` (Eq. 1); the metrics hold `codes` `[B, K]` too.

        `weight` `[T]`: how much the error of each action counts; None counts all alike. `mixed_share`: how many of the
        chunks take each dimension from another one. `squared_weight`: of the squared error that is added.
        """

    def tokenise(self, variables: Variables, chunks: jax.Array) -> jax.Array:
        """Skills `[B, K]` of chunks `[B, T, A]`."""

    def encode(self, variables: Variables, observation: Rows) -> jax.Array:
        """Context `[B, C, D]` of observations."""

    def sample(self, variables: Variables, context: jax.Array, keys: jax.Array, sampling: Sampling) -> Any:
        """One skill per row: `tokens` `[B, K]`, `log_prob` `[B, K]` of what they were drawn from, its `support`."""

    def decode(self, variables: Variables, skills: jax.Array) -> jax.Array:
        """Chunks `[B, T, A]` of skills `[B, K]`."""

    def score(
        self,
        variables: Variables,
        context: jax.Array,
        skills: jax.Array,
        *,
        temperature: float,
        support: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities and entropies `[B, K]` of given skills under the sampling policy."""

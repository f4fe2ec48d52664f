"""A policy's chunks through a codebook before they are executed: what the codebook lets through at best.

Letters: B rows, T actions per chunk, A action size.
"""

import dataclasses
from typing import Protocol

import chex
import jax

from cso_jax.policies.interface import Decision, Policy, Rows, Sampling, SkillPolicy, Variables, Wants


class ChunkPolicy(Policy, Protocol):
    """A policy that tells the whole chunk of which it would execute the beginning."""

    def chunks(self, variables: Variables, observation: Rows) -> jax.Array:
        """Chunks `[B, T, A]` for observations."""


def through_codebook(skills: SkillPolicy, variables: Variables, chunks: jax.Array) -> jax.Array:
    """Chunks `[B, T, A]` as the codebook gives them back: tokenised, then decoded."""
    chex.assert_shape(chunks, (None, skills.wants.chunk_length, None))
    return skills.decode(variables, skills.tokenise(variables, chunks))


@dataclasses.dataclass(frozen=True)
class ThroughCodebook:
    """A policy that acts by chunks, and the policy whose codebook they go through. Satisfies `ActingPolicy`.

    Its variables: `{"direct": those of the first, "codebook": the parts of the second that its codebook reads}`.
    """

    direct: ChunkPolicy
    skills: SkillPolicy

    @property
    def wants(self) -> Wants:
        return self.direct.wants

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
        """The beginning of the first policy's chunk, as the codebook gives it back: nothing is drawn."""
        del episode_keys, decision_index, sampling
        chunk = self.direct.chunks(variables["direct"], observation)
        return Decision(through_codebook(self.skills, variables["codebook"], chunk)[:, :execution_horizon])

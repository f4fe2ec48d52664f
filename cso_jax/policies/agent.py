"""A policy with everything that it needs to act: what is evaluated, exported, or sent to another host."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from cso_jax.envs.protocol import ChunkFrame
from cso_jax.policies.interface import ActingPolicy, Decision, Sampling, Variables


@dataclasses.dataclass(frozen=True, eq=False)
class Agent:
    """A policy, its variables, the tasks that its ids number, how it draws, how many actions of a chunk it executes.

    `frame` is what the policy's chunks are relative to, None for absolute ones; the agent's decisions are absolute.
    """

    policy: ActingPolicy
    variables: Variables
    tasks: tuple[str, ...]
    sampling: Sampling
    execution_horizon: int
    frame: ChunkFrame | None = None

    def on_device(self) -> "Agent":
        """The same with its variables on the device, where many decisions want them."""
        return dataclasses.replace(self, variables=jax.device_put(self.variables))

    def decide(
        self,
        observations: Mapping[str, np.ndarray],
        keys: np.ndarray,
        decision_index: np.ndarray,
        tasks: Sequence[str],
    ) -> Decision:
        """Decisions for B episodes, arrays on the device.

        Args:
          observations: `[B, ...]` by the keys of the environment's spec.
          keys: uint32 `[B, 2]`, one raw PRNG key per episode.
          decision_index: int32 `[B]`, how many decisions each episode has had.
          tasks: B names. Raises KeyError for one that is not of `self.tasks`.
        """
        ids = {task: number for number, task in enumerate(self.tasks)}
        rows = dict(observations, task=np.array([ids[name] for name in tasks], np.int32))
        return _decide(
            self.policy,
            self.variables,
            rows,
            keys,
            decision_index,
            sampling=self.sampling,
            execution_horizon=self.execution_horizon,
            frame=self.frame,
        )


def decide_absolutely(
    policy: ActingPolicy,
    variables: Variables,
    rows: Mapping[str, jax.Array],
    keys: jax.Array,
    decision_index: jax.Array,
    *,
    sampling: Sampling,
    execution_horizon: int,
    frame: ChunkFrame | None,
) -> Decision:
    """The policy's decision with absolute actions `[B, E, A]`, whatever it predicts; pure, for jitted programs."""
    decision = policy.decide(
        variables, rows, keys, decision_index, sampling=sampling, execution_horizon=execution_horizon
    )
    if frame is None:
        return decision
    entry = rows[frame.key]
    newest = entry[:, -1] if policy.wants.history > 1 else entry
    return decision._replace(actions=frame.absolute(decision.actions, newest))


@functools.partial(jax.jit, static_argnames=("policy", "sampling", "execution_horizon", "frame"))
def _decide(
    policy: ActingPolicy,
    variables: Variables,
    rows,
    keys,
    decision_index,
    *,
    sampling: Sampling,
    execution_horizon: int,
    frame: ChunkFrame | None,
) -> Decision:
    return decide_absolutely(
        policy, variables, rows, keys, decision_index, sampling=sampling, execution_horizon=execution_horizon,
        frame=frame,
    )  # fmt: skip

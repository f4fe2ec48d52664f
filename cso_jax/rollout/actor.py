"""An agent as the rollout loop calls it: numpy in, numpy out, one jitted program for one batch shape."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from cso_jax import telemetry
from cso_jax.policies.agent import Agent


@dataclasses.dataclass(frozen=True, eq=False)
class AgentAct:
    """An agent as an `ActFn`; `keep` are the fields of its decisions that are stored, `clock` books its time."""

    agent: Agent
    keep: tuple[str, ...]
    clock: telemetry.PhaseClock | None = None

    def on_device(self) -> "AgentAct":
        """The same with its variables on the device, where many decisions want them."""
        return dataclasses.replace(self, agent=self.agent.on_device())

    def __call__(
        self,
        observations: dict[str, np.ndarray],
        keys: np.ndarray,
        decision_index: np.ndarray,
        tasks: tuple[str, ...],
        /,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        with self.clock.phase("inference") if self.clock is not None else contextlib.nullcontext():
            decision = self.agent.decide(observations, keys, decision_index, tasks)
            extras = {name: value for name in self.keep if (value := getattr(decision, name)) is not None}
            found: tuple[Any, Any] = jax.device_get((decision.actions, extras))
        return found


def make_act(agent: Agent, *, keep: Sequence[str] = (), clock: telemetry.PhaseClock | None = None) -> AgentAct:
    """The agent as an `ActFn`, its variables on the device.

    `keep` names the fields of its `Decision` to store with each decision: "skill", "support" (absent when top-k is 0)
    and "context". "log_prob" is always stored where there is one: it alone tells the pool that a broken policy still
    draws tokens.
    """
    return AgentAct(agent, tuple(dict.fromkeys(("log_prob", *keep))), clock).on_device()

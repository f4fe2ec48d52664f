"""An agent as the rollout loop calls it: numpy in, numpy out, one jitted program for one batch shape."""

from collections.abc import Callable, Sequence

import jax

from cso_jax import telemetry
from cso_jax.policies.agent import Agent
from cso_jax.rollout.episodes import ActFn


def make_act(agent: Agent, *, keep: Sequence[str] = (), clock: telemetry.PhaseClock | None = None) -> ActFn:
    """The agent as an `ActFn`.

    `keep` names the fields of its `Decision` to store with each decision: "skill", "support" (absent when top-k is 0)
    and "context". "log_prob" is always stored where there is one: it alone tells the pool that a broken policy still
    draws tokens.
    """
    stored = dict.fromkeys(("log_prob", *keep))
    agent = agent.on_device()

    def act(observations, keys, decision_index, task_names):
        decision = agent.decide(observations, keys, decision_index, task_names)
        extras = {name: getattr(decision, name) for name in stored if getattr(decision, name) is not None}
        return jax.device_get((decision.actions, extras))

    return _timed(act, clock) if clock is not None else act


def _timed(act: Callable, clock: telemetry.PhaseClock) -> ActFn:
    def timed(*arguments):
        with clock.phase("inference"):
            return act(*arguments)

    return timed

"""The policy as the rollout loop calls it: numpy in, numpy out, one jitted program for one batch shape."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from cso_jax import telemetry
from cso_jax.policies.quest import policy
from cso_jax.rollout.episodes import ActFn

_decide = jax.jit(policy.decide, static_argnames=("networks", "temperature", "top_k", "execution_horizon"))


def make_act(
    networks: policy.Networks,
    variables: policy.Variables,
    tasks: Sequence[str],
    *,
    temperature: float,
    top_k: int,
    execution_horizon: int,
    keep: Sequence[str] = (),
    clock: telemetry.PhaseClock | None = None,
) -> ActFn:
    """The policy with fixed parameters as an `ActFn`.

    `keep` names the fields of `policy.Decision` to store with each decision: "skill", "support" (absent when `top_k` is
    0) and "context". "log_prob" is always stored: it alone tells the pool that a broken policy still draws tokens.
    """
    stored = dict.fromkeys(("log_prob", *keep))
    task_ids = {task: number for number, task in enumerate(tasks)}
    variables = jax.device_put(variables)

    def act(observations, keys, decision_index, task_names):
        rows = dict(observations, task=np.array([task_ids[name] for name in task_names], np.int32))
        decision = _decide(
            networks,
            variables,
            rows,
            keys,
            decision_index,
            temperature=temperature,
            top_k=top_k,
            execution_horizon=execution_horizon,
        )
        extras = {name: getattr(decision, name) for name in stored if getattr(decision, name) is not None}
        return jax.device_get((decision.actions, extras))

    return _timed(act, clock) if clock is not None else act


def _timed(act: Callable, clock: telemetry.PhaseClock) -> ActFn:
    def timed(*arguments):
        with clock.phase("inference"):
            return act(*arguments)

    return timed

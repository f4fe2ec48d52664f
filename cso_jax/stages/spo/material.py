"""What the updates of stage spo learn from: the stored decisions of collected episodes as columns."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from cso_jax.policies.interface import Sampling, SkillPolicy, Variables
from cso_jax.rollout.episodes import EpisodeRecord
from cso_jax.run import Run

Columns = dict[str, np.ndarray]


class Material(NamedTuple):
    """Items to be packed whole, columns `[D, ...]` of each, and what to log of them."""

    items: list[Columns]
    metrics: dict[str, float]


def behaviour(config: ConfigDict) -> Sampling:
    """How SPO draws the skills that it learns from: the policy whose ratio it takes."""
    return Sampling(config.spo.temperature or config.sampling.temperature, config.sampling.top_k)


def episode_columns(run: Run, record: EpisodeRecord) -> Columns:
    """The stored decisions of an episode as columns `[D, ...]`, with its observations where the encoder is trained."""
    columns = dict(record.decisions)
    if not run.config.spo.freeze_encoder:
        assert record.observations is not None
        columns |= {f"observation/{name}": values for name, values in record.observations.items()}
        task = run.tasks.index(record.request.init.task)
        columns["observation/task"] = np.full(len(record.actions), task, np.int32)
    return columns


def score_episodes(run: Run, variables: Variables, episodes: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
    """Log-probabilities `[D, K]` of each episode's stored skills under `variables`, on the stored contexts."""
    names = [name for name in ("context", "skill", "support") if name in episodes[0]]

    def score(rows: Columns) -> jax.Array:
        return _score(
            run.skill_policy, variables, rows["context"], rows["skill"],
            temperature=behaviour(run.config).temperature, support=rows.get("support"),
        )[0]  # fmt: skip

    stacked = {name: np.concatenate([episode[name] for episode in episodes]) for name in names}
    return split(in_rows(score, stacked, run.config.spo.minibatch_skills), episodes)


@functools.partial(jax.jit, static_argnames=("policy", "temperature"))
def _score(policy: SkillPolicy, variables: Variables, context, skill, *, temperature: float, support):
    return policy.score(variables, context, skill, temperature=temperature, support=support)


def in_rows(function: Callable[[Columns], jax.Array], columns: Columns, rows: int) -> np.ndarray:
    """`function` over all rows, `rows` at a time, so that one compiled program serves any number of them."""
    total = len(next(iter(columns.values())))
    parts = []
    for first in range(0, total, rows):
        chunk = {name: values[first : first + rows] for name, values in columns.items()}
        missing = rows - len(next(iter(chunk.values())))
        padded = {name: np.concatenate([v, np.repeat(v[:1], missing, axis=0)]) for name, v in chunk.items()}
        parts.append(np.asarray(function(padded))[: rows - missing])
    return np.concatenate(parts)


def split(values: np.ndarray, items: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
    """Rows of all items together, as those of each."""
    return np.split(values, np.cumsum([len(item["skill"]) for item in items])[:-1])

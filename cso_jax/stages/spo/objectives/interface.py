"""What an objective's module offers to stage spo."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax

from cso_jax.policies.interface import Variables
from cso_jax.rollout.episodes import EpisodeRecord
from cso_jax.run import Run
from cso_jax.stages.spo.material import Columns, Material

SkillLoss = Callable[[jax.Array, dict[str, Any]], tuple[jax.Array, dict[str, jax.Array]]]
"""`(log_prob [S, K], batch) -> (loss, metrics)`: the log-probabilities of the batch's skills as they are now."""


class Objective(Protocol):
    """`settings` is `config.spo`. The items of the material are packed whole into minibatches of S skills.

    `item_id` and `item_count` are the names of two columns of a minibatch: which item a skill belongs to, counted from
    0 in each minibatch, and everywhere the mean number of items in one, by which means over items divide.
    """

    item_id: str
    item_count: str

    def problems(self, settings: Any, decisions: int) -> list[str]:
        """What does not go together in the settings; an episode holds up to `decisions` skills."""

    def uses_every_group(self, settings: Any) -> bool:
        """Whether groups of one outcome teach too: where the baseline is not their own mean."""

    def needs_reference(self, settings: Any) -> bool:
        """Whether the policy that the stage starts from takes part."""

    def prepare(
        self,
        run: Run,
        groups: Sequence[Sequence[EpisodeRecord]],
        columns: Sequence[Sequence[Columns]],
        reference: Variables | None,
    ) -> Material:
        """What the updates learn from; `columns[g][i]` are the stored decisions of episode i of group g."""

    def loss(self, settings: Any) -> SkillLoss: ...

"""What an update of stage spo maximises, a module per objective. Adding one is a module and a line here."""

from typing import Any

from cso_jax.stages.spo.objectives import clipped, preference, reinforce
from cso_jax.stages.spo.objectives.interface import Objective

OBJECTIVES: dict[str, Objective] = {
    "surrogate": clipped,
    "reinforce": reinforce,
    "preference": preference,
}


def of(settings: Any) -> Objective:
    """The objective of `config.spo`."""
    return OBJECTIVES[settings.objective]

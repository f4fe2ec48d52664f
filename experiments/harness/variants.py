"""The methods that are compared, as changes to a suite's config. Nothing else may differ between two of them.

The clip range is that of the ratio itself. A clip fraction is the share of units (tokens, skills or whole trajectories,
whichever one ratio is taken over) with a ratio outside the range, so clip fractions of two granularities count
different things.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of a table.

    `changes` are config keys and values; `stage` is the policy whose evaluation counts; `paper` holds the paper's
    numbers by column. `rounds` above 1 alternates R-SFT and SPO that many times, each with its share of the budget.
    """

    name: str
    label: str
    changes: Mapping[str, Any]
    stage: str = "spo"
    paper: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rounds: int = 1


# Skill-level ratios (Eq. 7), advantage relative to the group's mean without a standard deviation (Eq. 8), encoder
# frozen after R-SFT. Clip range and averaging are the suite's, as its learning rate is.
SPO: dict[str, Any] = {
    "rsft.enabled": True,
    "spo.objective": "surrogate",
    "spo.critic": False,
    "spo.unit": "skill",
    "spo.length_normalise": False,
    "spo.baseline": "mean",
    "spo.normalise_std": False,
    "spo.freeze_encoder": True,
}

# The same with the range of Appendix E.2: the row that granularities with the paper's ranges are compared with.
SKILL_RATIOS = SPO | {"spo.clip_low": 0.93, "spo.clip_high": 1.15}

# Token-level ratios with DAPO's range (Appendix E.3); everything else as SPO.
GRPO = SPO | {"spo.unit": "token", "spo.clip_low": 0.8, "spo.clip_high": 1.28}

# GSPO as this paper writes it (Eq. 5): the product of all ratios of a trajectory, not normalised by its length, with
# the range of Appendix E.3.
GSPO = SPO | {"spo.unit": "trajectory", "spo.clip_low": 0.997, "spo.clip_high": 1.004}

# GSPO as its own paper defines it (arXiv 2507.18071): the geometric mean over the trajectory's tokens,
# clipped to [1 - 3e-4, 1 + 4e-4].
GSPO_NORMALISED = SPO | {
    "spo.unit": "trajectory",
    "spo.clip_low": 1 - 3e-4,
    "spo.clip_high": 1 + 4e-4,
    "spo.length_normalise": True,
}

# Standard PPO: a learned value on the frozen context, generalised advantages per decision; ratios and range as SPO.
# With the critic comes what belongs to it: a discount, advantages normalised over the iteration, and all groups, of
# one outcome too, since the baseline is not the group's (so more updates).
PPO = SPO | {"spo.critic": True}

# RIPT on the same imitation policy: leave-one-out advantages, token ratios in [0.8, 1.2], mean over the tokens, no
# R-SFT, as many groups and passes over them as SPO.
RIPT = SPO | {
    "rsft.enabled": False,
    "spo.unit": "token",
    "spo.clip_low": 0.8,
    "spo.clip_high": 1.2,
    "spo.average": "unit_mean",
    "spo.baseline": "leave_one_out",
}

# GRAPE's trajectory-wise preference loss on (success, failure) pairs of one initial state; reference: the imitation
# policy. Its preferences come from outcomes alone here, not from its cost model.
GRAPE = SPO | {"rsft.enabled": False, "spo.objective": "preference"}

# REINFORCE without a baseline: only successes teach, and groups of successes too.
REINFORCE = SPO | {"rsft.enabled": False, "spo.objective": "reinforce", "spo.baseline": "none"}

SPO_ONLY = SPO | {"rsft.enabled": False}
NOT_FROZEN = SPO | {"spo.freeze_encoder": False}


def imitation(**paper: str) -> Variant:
    """The policy that everything starts from."""
    return Variant("imitation", "imitation (QueST)", {}, stage="imitation", paper=paper)


def clipped(granularity: Mapping[str, Any], low: float, high: float) -> dict[str, Any]:
    """A granularity with another clip range."""
    return dict(granularity) | {"spo.clip_low": low, "spo.clip_high": high}

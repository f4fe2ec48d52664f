"""R-SFT and SPO on policies that are not QueST: neither needs more than a distribution over what was executed.

R-SFT trains any policy on its own successes. SPO needs discrete skills with exact log-probabilities: the codes of one
decision of VQ-BeT and of the STAR-style policy, whose offsets are trained by imitation alone. Not in the paper.
"""

from collections.abc import Sequence

from harness import kinds, runner, variants
from harness.variants import Variant
from ml_collections import ConfigDict

_STAGES = {"imitation": "imitation", "rsft": "+ R-SFT", "spo": "+ SPO"}


def rows(config: ConfigDict) -> Sequence[Variant]:
    """Every kind after every stage that it has; those of one kind are one run."""
    del config
    found = [
        variants.imitation(),
        Variant("rsft", "QueST + R-SFT", {}, stage="rsft"),
        Variant("spo", "QueST + SPO", variants.SPO),
    ]
    for kind, label in kinds.LABELS.items():
        changes = kinds.changes_of(kind) | ({"spo.enabled": True} if kinds.has_spo(kind) else {})
        stages = list(_STAGES) if kinds.has_spo(kind) else ["imitation", "rsft"]
        for stage in stages:
            text = label if stage == "imitation" else f"{label} {_STAGES[stage]}"
            found.append(Variant(f"{kind}-{stage}", text, changes, stage=stage))
    return found


EXPERIMENT = runner.Experiment("other_bases", __doc__ or "", rows, "imitation")

if __name__ == "__main__":
    runner.start(EXPERIMENT)

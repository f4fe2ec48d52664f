"""Other ways to improve the same imitation policy by its own rollouts: the RL rows of Table 1.

RIPT (leave-one-out advantages, token ratios), GRAPE (trajectory-wise preferences) and REINFORCE as a floor, all from
the imitation policy with the same SPO iterations, groups and episodes per group; beside them SPO from the same start
and the whole cascade. The methods that need both outcomes in a group draw up to `config.spo.max_groups`, and GRAPE
makes one pair per success and failure: rollouts and updates are in the table.
"""

from harness import runner, variants
from harness.variants import Variant

VARIANTS = (
    variants.imitation(Overall="81.5", Long="69.1"),
    Variant("reinforce", "REINFORCE", variants.REINFORCE),
    Variant("grape", "GRAPE", variants.GRAPE, paper={"Overall": "80.2", "Long": "57.2"}),
    Variant("ript", "RIPT", variants.RIPT, paper={"Overall": "93.6", "Long": "87.5"}),
    Variant("spo-only", "SPO without R-SFT", variants.SPO_ONLY, paper={"Long": "91.7"}),
    Variant("spo", "CSO (R-SFT, then SPO)", variants.SPO, paper={"Overall": "97.5", "Long": "96.0"}),
)
EXPERIMENT = runner.Experiment(
    "baselines_rl", __doc__ or "", lambda _: VARIANTS, "spo", paper_columns=("Overall", "Long"),
    note="The paper's GRAPE is cited from its own publication, where it starts from another policy.",
)  # fmt: skip

if __name__ == "__main__":
    runner.start(EXPERIMENT)

"""Skill-level ratios (SPO) against trajectory-level (GSPO) and token-level (GRPO) ones: Table 3 and Figure 3.

All after the same R-SFT with a frozen encoder. GSPO twice: as this paper writes it (Eq. 5, the unnormalised product)
and as its own paper defines it (normalised by length). curves.png is Figure 3: the mean reward of the training
rollouts, standard deviation over seeds shaded.
"""

from harness import runner, variants
from harness.variants import Variant

VARIANTS = (
    Variant("spo", "skill (SPO)", variants.SKILL_RATIOS, paper={"clip %": "11.2", "Long": "96.0", "90": "97.7"}),
    Variant("gspo", "trajectory (GSPO, Eq. 5)", variants.GSPO,
            paper={"clip %": "46.3", "Long": "92.1", "90": "95.8"}),
    Variant("gspo-normalised", "trajectory (GSPO, length-normalised)", variants.GSPO_NORMALISED),
    Variant("grpo", "token (GRPO)", variants.GRPO, paper={"clip %": "3.4", "Long": "94.3", "90": "96.9"}),
)  # fmt: skip
EXPERIMENT = runner.Experiment(
    "granularity", __doc__ or "", lambda _: VARIANTS, "spo", paper_columns=("clip %", "Long", "90"),
    note="The paper's clip fraction of GSPO is 46.3 % in Table 3 and 1.5 % in Table 9, for the same range.",
)  # fmt: skip

if __name__ == "__main__":
    runner.start(EXPERIMENT)

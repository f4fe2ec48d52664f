"""A learned critic does not help: PPO with per-decision values against critic-free SPO, Table 10.

The critic is an MLP on the frozen context of each decision, fitted to the first iteration's returns before its first
use; generalised advantage estimates, normalised over the iteration; ratios and clip range are SPO's.
"""

from harness import runner, variants
from harness.variants import Variant

VARIANTS = (
    Variant("spo", "SPO (critic-free)", variants.SPO, paper={"Long": "96.0"}),
    Variant("ppo", "PPO (learned critic)", variants.PPO, paper={"Long": "94.3"}),
)
EXPERIMENT = runner.Experiment(
    "critic", __doc__ or "", lambda _: VARIANTS, "spo", paper_columns=("Long",),
    note="PPO learns from every group of an iteration, SPO from those with both outcomes: see updates. PPO's "
    "advantages are discounted and normalised.",
)  # fmt: skip

if __name__ == "__main__":
    runner.start(EXPERIMENT)

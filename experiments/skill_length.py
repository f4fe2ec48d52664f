"""Eight tokens per skill are the best compromise: 4, 8 and 16 tokens of the same chunk, Table 8.

The strides of the action autoencoder's convolutions set the tokens, so codebook, imitation, R-SFT and SPO are all
trained anew; the demonstrations are shared.
"""

import math

from harness import runner, variants
from harness.variants import Variant
from ml_collections import ConfigDict

_STRIDES = (((2, 2, 2), "93.5"), ((2, 2, 1), "96.0"), ((2, 1, 1), "91.6"))


def lengths(config: ConfigDict) -> list[Variant]:
    made = []
    for strides, paper in _STRIDES:
        stride = math.prod(strides)
        label = f"{config.autoencoder.chunk_length // stride} tokens per skill"
        changes = variants.SPO | {"autoencoder.strides": strides}
        made.append(Variant(f"stride-{stride}", label, changes, paper={"Long, 4/8/16": paper}))
    return made


EXPERIMENT = runner.Experiment(
    "skill_length", __doc__ or "", lengths, "stride-4", paper_columns=("Long, 4/8/16",)
)  # fmt: skip

if __name__ == "__main__":
    runner.start(EXPERIMENT)

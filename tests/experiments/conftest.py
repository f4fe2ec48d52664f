"""The experiments are scripts beside the package: their folder becomes importable, as it is when one is run."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

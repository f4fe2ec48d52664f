"""Success rates that others have published: the rows of Table 1, Table 2 and Figure 2, with where they are from.

Data only. main_table.py puts them beside what was measured here, and alone where nothing can be.
"""

from collections.abc import Mapping
from typing import NamedTuple

SUITES = ("libero_object", "libero_spatial", "libero_goal", "libero_long")
"""The columns of Table 1, in its order."""
OWN = "Table 1, which calls it a run of its own"
STARS = "Table 1, which calls it a run of its own; equal to the README of STAR in every digit"
ELSEWHERE = "Table 1, which cites the original publication"
FIGURE_2 = "Table 1; LIBERO-90 and ML45 from Figure 2 and Table 2"


class Published(NamedTuple):
    """A row: success in percent by suite, and where in the paper it stands."""

    label: str
    success: Mapping[str, str]
    source: str


def _of_table_1(*numbers: str) -> dict[str, str]:
    return dict(zip(SUITES, numbers, strict=True))


ROWS: dict[str, Published] = {
    "octo": Published("Octo", _of_table_1("85.7 ± 0.9", "78.9 ± 1.0", "84.6 ± 0.9", "51.1 ± 1.3"), ELSEWHERE),
    "openvla": Published("OpenVLA", _of_table_1("88.4 ± 0.8", "84.7 ± 0.9", "79.2 ± 1.0", "53.7 ± 1.3"), ELSEWHERE),
    "dita": Published("Dita", _of_table_1("96.3 ± 0.7", "84.2 ± 1.0", "85.4 ± 1.5", "63.8 ± 0.8"), ELSEWHERE),
    "pi0": Published("π₀", _of_table_1("98.8 ± 0.5", "96.8 ± 0.8", "95.8 ± 1.0", "85.2 ± 1.1"), OWN),
    "pi0_fast": Published("π₀ + FAST", _of_table_1("96.8 ± 0.7", "96.4 ± 0.9", "88.6 ± 0.8", "60.2 ± 0.2"), ELSEWHERE),
    "resnet_t": Published("ResNet-T", _of_table_1("78.9 ± 1.4", "75.7 ± 1.9", "52.7 ± 2.4", "45.0 ± 1.1"), STARS),
    "diffusion": Published(
        "Diffusion Policy", _of_table_1("62.6 ± 2.8", "69.5 ± 1.8", "54.6 ± 0.5", "51.2 ± 3.0"), STARS
    ),
    "act": Published("ACT", _of_table_1("78.8 ± 1.2", "82.0 ± 0.5", "66.1 ± 1.6", "44.0 ± 0.5"), STARS),
    "mdt": Published("MDT", _of_table_1("87.5 ± 1.4", "78.5 ± 1.5", "73.5 ± 1.8", "64.8 ± 1.1"), OWN),
    "vqbet": Published("VQ-BeT", _of_table_1("90.3 ± 1.5", "88.7 ± 2.0", "61.3 ± 1.0", "59.7 ± 0.2"), STARS),
    "star": Published("STAR", _of_table_1("98.3 ± 0.2", "95.5 ± 0.6", "95.0 ± 0.7", "88.5 ± 0.3"), ELSEWHERE),
    "imitation": Published(
        "QueST",
        _of_table_1("90.0 ± 1.1", "84.5 ± 0.2", "76.7 ± 0.9", "69.1 ± 1.0")
        | {"libero_90": "88.6", "metaworld_ml45": "85.0"},
        STARS,
    ),
    "grape": Published("GRAPE", _of_table_1("92.1 ± 0.6", "88.5 ± 0.8", "83.1 ± 1.3", "57.2 ± 1.4"), ELSEWHERE),
    "ript": Published("QueST + RIPT", _of_table_1("98.4 ± 0.3", "95.6 ± 0.4", "92.7 ± 0.5", "87.5 ± 0.6"), OWN),
    "rsft": Published("R-SFT only", {"libero_long": "85.3", "libero_90": "93.1"}, "Table 2"),
    "spo-only": Published("SPO only", {"libero_long": "91.7", "libero_90": "95.3"}, "Table 2"),
    "spo": Published(
        "CSO",
        _of_table_1("98.6 ± 0.2", "98.0 ± 0.6", "97.4 ± 0.2", "96.0 ± 0.5")
        | {"libero_90": "97.7", "metaworld_ml45": "97.3"},
        FIGURE_2,
    ),
}
"""By the name of the variant or kind of policy that is measured here, where there is one."""


def four_suites(name: str) -> str:
    """The mean over the four suites of Table 1, which its own column "Overall" is not for every row."""
    numbers = [float(ROWS[name].success[suite].split()[0]) for suite in SUITES]
    return f"{sum(numbers) / len(numbers):.1f}"

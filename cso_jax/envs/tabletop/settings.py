"""What the tabletop's modules read of `config.env`, and which values are impossible."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cso_jax.envs.tabletop.robots import ROBOTS
from cso_jax.rules import at_least_one, one_of

CAMERAS = ("front", "wrist")
PHYSICS_HZ = 400
"""Physics steps per second: 2.5 ms each."""
RAMP = 4
"""A command reaches the motors in so many equal parts per control step, as a driver interpolates it."""
RATES = (10, 20, 25)
"""Control rates that divide the physics into whole steps and parts."""

_PLAIN = {"shadows": False, "reflections": False, "msaa": 0}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes in pixels, horizon and video_every in control steps."""

    robot: str = "viperx"
    obs: str = "state"
    cameras: tuple[str, ...] = CAMERAS
    image_size: int = 128
    horizon: int = 400
    control_hz: int = 20
    chunks: str = "relative"
    render: Mapping[str, Any] = dataclasses.field(default_factory=lambda: dict(_PLAIN))
    video_size: int = 160
    video_every: int = 4
    history: int = 1

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Settings":
        """Read a plain mapping; keys that mean nothing here are ignored. Raises ValueError with all its problems."""
        found = problems(settings)
        if found:
            raise ValueError("\n".join(found))
        return cls._read(settings)

    @classmethod
    def _read(cls, settings: Mapping[str, Any]) -> "Settings":
        known = {field.name for field in dataclasses.fields(cls)}
        values = {key: value for key, value in settings.items() if key in known}
        if "cameras" in values:
            values["cameras"] = tuple(values["cameras"])
        values["render"] = {**_PLAIN, **values.get("render", {})}
        return cls(**values)


def problems(settings: Mapping[str, Any]) -> list[str]:
    """Everything wrong with the values, one line each."""
    chosen = Settings._read(settings)
    found = one_of("env.robot", chosen.robot, tuple(ROBOTS))
    found += one_of("env.obs", chosen.obs, ("pixels", "state"))
    found += one_of("env.chunks", chosen.chunks, ("relative", "absolute"))
    for name in ("image_size", "horizon", "video_size", "video_every", "history"):
        found += at_least_one(f"env.{name}", getattr(chosen, name))
    if chosen.control_hz not in RATES:
        rates = ", ".join(map(str, RATES))
        found.append(f"config.env.control_hz must be one of {rates}, got {chosen.control_hz}: a control step is a "
                     f"whole number of physics steps at {PHYSICS_HZ} Hz")  # fmt: skip
    if not chosen.cameras or not set(chosen.cameras) <= set(CAMERAS):
        given = ", ".join(chosen.cameras) or "none"
        found.append(f"config.env.cameras must be some of {', '.join(CAMERAS)}, got {given}")
    if set(chosen.render) != set(_PLAIN):
        found.append(f"config.env.render takes {', '.join(_PLAIN)}, got {', '.join(chosen.render)}")
    return found

"""What MetaWorld's modules read of `config.env`, and which values are impossible."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cso_jax.rules import at_least_one, one_of

MAX_HORIZON = 500
"""MetaWorld raises an error at step 501."""

_PLAIN = {"shadows": False, "reflections": False, "msaa": 0}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes in pixels, horizon and video_every in simulator steps."""

    obs: str = "state"
    cameras: tuple[str, ...] = ("corner2",)
    image_size: int = 128
    horizon: int = MAX_HORIZON
    render: Mapping[str, Any] = dataclasses.field(default_factory=lambda: dict(_PLAIN))
    video_size: int = 128
    video_every: int = 4
    instance_cap: int = 96
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
    found = one_of("env.obs", chosen.obs, ("pixels", "state"))
    if not 1 <= chosen.horizon <= MAX_HORIZON:
        found.append(f"config.env.horizon must be in [1, {MAX_HORIZON}], got {chosen.horizon}: MetaWorld ends every "
                     f"episode at {MAX_HORIZON} steps")  # fmt: skip
    for name in ("image_size", "video_size", "video_every", "instance_cap", "history"):
        found += at_least_one(f"env.{name}", getattr(chosen, name))
    if not chosen.cameras:
        found.append("config.env.cameras is empty: name at least one")
    if set(chosen.render) != set(_PLAIN):
        found.append(f"config.env.render takes {', '.join(_PLAIN)}, got {', '.join(chosen.render)}")
    return found

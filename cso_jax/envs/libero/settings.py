"""What LIBERO's modules read of `config.env`, and which values are impossible."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cso_jax.envs.libero.control import ACTION_DIM
from cso_jax.envs.libero.pro import VARIANTS
from cso_jax.envs.libero.protocols import PROTOCOLS
from cso_jax.rules import at_least_one, one_of

CAMERAS = ("agentview", "robot0_eye_in_hand", "frontview", "sideview", "birdview", "galleryview", "canonical_agentview")
"""Cameras of LIBERO's scenes; the published data has the first two."""

# What robosuite's own images are drawn with: no light of LIBERO's scenes casts a shadow.
PROFILES: dict[str, dict[str, Any]] = {
    "official": {"shadows": False, "reflections": True, "msaa": 4},
    "fast": {"shadows": False, "reflections": False, "msaa": 0},
}
"""How images are drawn, by `config.env.libero.render`."""


@dataclasses.dataclass(frozen=True)
class Options:
    """`config.env.libero`: files, the protocol, how steps and images are computed, scenes kept per process.

    Evaluation alone sets `variant` (`pro.VARIANTS`: LIBERO-PRO's instead of the benchmark's tasks; files in `pro`).
    """

    assets: str = ""
    protocol: str = "settle"
    physics: str = "official"
    render: str = "official"
    decimate: int = 0
    proprio: str = "joints"
    train_states: str = "placements"
    datasets: str = ""
    joint_noise: float = 0.0
    spread: tuple[float, ...] = ()
    scenes: int = 12
    variant: str = ""
    pro: str = ""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes in pixels, horizon and video_every in simulator steps."""

    obs: str = "pixels"
    cameras: tuple[str, ...] = ("agentview", "robot0_eye_in_hand")
    image_size: int = 128
    horizon: int = 600
    video_size: int = 128
    video_every: int = 4
    history: int = 1
    libero: Options = dataclasses.field(default_factory=Options)

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
        options = dict(values.pop("libero", {}))
        if "spread" in options:
            options["spread"] = tuple(options["spread"])
        if "cameras" in values:
            values["cameras"] = tuple(values["cameras"])
        return cls(**values, libero=Options(**options))


def problems(settings: Mapping[str, Any]) -> list[str]:
    """Everything wrong with the values, one line each."""
    names = [field.name for field in dataclasses.fields(Options)]
    unknown = sorted(set(settings.get("libero", {})) - set(names))
    if unknown:
        return [f"config.env.libero takes {', '.join(names)}, got {', '.join(unknown)}"]
    chosen = Settings._read(settings)
    options = chosen.libero
    found = [
        *one_of("env.obs", chosen.obs, ("pixels", "state")),
        *one_of("env.libero.protocol", options.protocol, tuple(PROTOCOLS)),
        *one_of("env.libero.physics", options.physics, ("official", "fast")),
        *one_of("env.libero.render", options.render, tuple(PROFILES)),
        *one_of("env.libero.proprio", options.proprio, ("joints", "joints_ee", "ee8")),
        *one_of("env.libero.variant", options.variant, ("", *VARIANTS)),
        *one_of("env.libero.train_states", options.train_states, ("placements", "demonstrations")),
    ]
    for name in ("image_size", "horizon", "video_size", "video_every", "history"):
        found += at_least_one(f"env.{name}", getattr(chosen, name))
    found += at_least_one("env.libero.scenes", options.scenes)
    if options.spread and (len(options.spread) != ACTION_DIM or min(options.spread) <= 0):
        found.append(f"config.env.libero.spread must be () or {ACTION_DIM} numbers above 0, got {options.spread}")
    if options.decimate < 0 or (options.decimate and options.render != "fast"):
        found.append("config.env.libero.decimate must be 0, or with config.env.libero.render=fast a number of "
                     f"triangles, got {options.decimate} with render={options.render}")  # fmt: skip
    if not chosen.cameras or not set(chosen.cameras) <= set(CAMERAS):
        given = ", ".join(chosen.cameras) or "none"
        found.append(f"config.env.cameras must be some of {', '.join(CAMERAS)}, got {given}")
    if options.train_states == "demonstrations" and not options.datasets:
        found.append("config.env.libero.train_states=demonstrations needs config.env.libero.datasets, the folder of "
                     "the HDF5 files")  # fmt: skip
    return found

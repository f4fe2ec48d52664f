"""What a robot that training drives says about itself, as a file and as its first message. No JAX here.

The protocol between a training computer (the client) and a robot's program (the server, `runtime.robot_server`):
msgpack over a websocket, one client at a time, one answer per request.

    robot      {"protocol", "protocol_version", "schema"}            first, unasked
    training   {"reset": {"task", "split", "index"}, "record": bool}
               {"actions": [E, A] float32 in [-1, 1]}
    robot      {"observation", "success", "done", "steps", "physics_s", "render_s", "frames", "stages"}
               or a text frame, `refused (REASON): why`; the connection stays
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cso_jax.runtime.manifest import Checked, Entry, Limits, Task

FORMAT = "cso_jax.robot"
VERSION = 1


class SchemaError(ValueError):
    """A robot's description that cannot be used; one line."""


@dataclasses.dataclass(frozen=True)
class Commands(Checked):
    """An action: a value per name, which training knows in [-1, 1] and the robot as `low` to `high`, linearly."""

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    units: str
    rate_hz: float

    def _check(self) -> None:
        sizes = {len(self.names), len(self.low), len(self.high)}
        if len(sizes) > 1 or not self.names:
            raise ValueError(f"commands: expected names, low and high of one length, found {sorted(sizes)}")
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError("commands.low: expected values below those of commands.high")
        if not self.rate_hz > 0:
            raise ValueError(f"commands.rate_hz: expected a number above 0, found {self.rate_hz}")


@dataclasses.dataclass(frozen=True)
class Schema(Checked):
    """A robot: what it sees, what it is told, its tasks.

    `reproducible`: whether the same initial state can be had again exactly, as in simulation. Where it cannot, a group
    of episodes "from one initial state" is as alike as whoever lays the scene makes it.
    """

    name: str
    observation: tuple[Entry, ...]
    commands: Commands
    tasks: tuple[Task, ...]
    limits: Limits | None
    reproducible: bool

    def _check(self) -> None:
        if not self.observation or not self.tasks:
            raise ValueError("schema: expected at least one entry of an observation and one task")

    def to_plain(self) -> dict[str, Any]:
        """As JSON types."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return {"format": FORMAT, "version": VERSION} | plain

    def to_json(self) -> str:
        """The text of the schema's file."""
        return json.dumps(self.to_plain(), indent=2) + "\n"

    @classmethod
    def from_plain(cls, plain: Any) -> "Schema":
        """Read `to_plain`'s dictionary. Raises SchemaError."""
        if not isinstance(plain, Mapping) or plain.get("format") != FORMAT:
            raise SchemaError(f"expected a robot's schema of format {FORMAT!r}, found something else")
        if plain.get("version") != VERSION:
            raise SchemaError(
                f"the robot's schema: expected version {VERSION}, found {plain.get('version')!r}; run the same version "
                "of cso_jax on both sides"
            )
        try:
            return cls.of({key: value for key, value in plain.items() if key not in ("format", "version")})
        except ValueError as error:
            raise SchemaError(str(error)) from None

    @classmethod
    def read(cls, path: Path) -> "Schema":
        """The schema of a file. Raises SchemaError, FileNotFoundError."""
        try:
            return cls.from_plain(json.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path}, the robot's schema (config.env.schema), is not there: the robot's program writes it, "
                "simulated ones with --schema=FILE"
            ) from None
        except (SchemaError, ValueError, OSError) as error:
            raise SchemaError(f"{path}: {str(error).splitlines()[0]}") from None

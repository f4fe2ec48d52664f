"""What an exported policy says about itself: shapes, units, tasks, limits, where it comes from. No JAX here.

A manifest is written once, when a policy is exported, and read by every program beside the robot: the server checks
requests against it, the client compares it, the safety layer takes its limits from it. It is strict both ways: a value
of the wrong type, an unknown key or a missing one is a ValueError of one line that names the place.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np

FORMAT = "cso_jax.policy"
VERSION = 1

RESERVED = frozenset(
    ("task", "prompt", "reset", "episode", "request_id", "sent_at", "deadline_ms", "robot", "take_over")
)
"""Keys of a request beside the observation: no entry may have their names."""


@dataclasses.dataclass(frozen=True)
class Checked:
    """A frozen dataclass that converts its fields to the types of their annotations, or raises ValueError."""

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            value = _converted(getattr(self, name), hint, f"{type(self).__name__.lower()}.{name}")
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        """What the types cannot say."""

    @classmethod
    def of(cls, plain: Any) -> Self:
        """Made of JSON types. Raises ValueError, one line that names the place."""
        made: Self = _instance(plain, cls, cls.__name__.lower())
        return made


@dataclasses.dataclass(frozen=True)
class Entry(Checked):
    """One entry of an observation: `shape` is without batch and history; images are uint8 `(H, W, 3)`, RGB.

    `orientation`: "upright", or how the policy was shown its images otherwise ("rotated_180", "flipped").
    """

    name: str
    kind: Literal["lowdim", "image"]
    shape: tuple[int, ...]
    dtype: Literal["float32", "uint8"]
    orientation: str = "upright"

    def _check(self) -> None:
        _require(bool(self.name), "entry.name", "a name", "an empty one")
        _require(self.name not in RESERVED, f"entry {self.name!r}", "a name that no request key has", "a reserved one")
        _require(all(size > 0 for size in self.shape), f"entry {self.name!r}: shape", "sizes above 0", self.shape)
        if self.kind == "image":
            _require(len(self.shape) == 3 and self.shape[-1] == 3, self._where("shape"), "(H, W, 3)", self.shape)
            _require(self.dtype == "uint8", self._where("dtype"), "uint8 for an image", self.dtype)
        else:
            _require(self.dtype == "float32", self._where("dtype"), "float32 for kind lowdim", self.dtype)

    def _where(self, field: str) -> str:
        return f"entry {self.name!r}: {field}"


@dataclasses.dataclass(frozen=True)
class Frame(Checked):
    """What the policy's own chunks are relative to: `cso_jax.envs.protocol.ChunkFrame`, whose fields these are.

    Answers are absolute; this is for whoever makes `act` again.
    """

    key: str
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    spread: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Action(Checked):
    """What a call of the policy answers: `chunk_length` actions of size `dim`, each within `low` and `high`.

    `execution_horizon` of them are meant to be executed before the next decision, the others bridge latency.
    `rate_hz`: actions per second; None where only a simulator knows. `scaled`: the policy's own actions, in [-1, 1],
    were stretched to `low` and `high` for the answer; else they are answered as they are.
    """

    dim: int
    chunk_length: int
    execution_horizon: int
    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    units: str
    rate_hz: float | None
    scaled: bool = False
    frame: Frame | None = None

    def _check(self) -> None:
        _require(self.dim >= 1, "action.dim", "at least 1", self.dim)
        within = 1 <= self.execution_horizon <= self.chunk_length
        _require(within, "action.execution_horizon", f"1 to chunk_length {self.chunk_length}", self.execution_horizon)
        for name in ("names", "low", "high"):
            length = len(getattr(self, name))
            _require(length == self.dim, f"action.{name}", f"{self.dim} values (action.dim)", length)
        ordered = all(low <= high for low, high in zip(self.low, self.high, strict=True))
        _require(ordered, "action.low", "values at most those of action.high", (self.low, self.high))
        _require(self.rate_hz is None or self.rate_hz > 0, "action.rate_hz", "above 0, or null", self.rate_hz)


@dataclasses.dataclass(frozen=True)
class Task(Checked):
    """A task that the policy was trained for; its index in `Manifest.tasks` is what the policy is called with."""

    name: str
    sentence: str


@dataclasses.dataclass(frozen=True)
class Limits(Checked):
    """What a robot's joints may do, one value per joint, None where it is not limited.

    Positions in rad, velocity in rad/s, `max_step` in rad per control step. A joint has the name of the action that
    sets its position.
    """

    joints: tuple[str, ...]
    position_low: tuple[float, ...] | None
    position_high: tuple[float, ...] | None
    velocity: tuple[float, ...] | None
    max_step: tuple[float, ...] | None

    def _check(self) -> None:
        for name in ("position_low", "position_high", "velocity", "max_step"):
            values = getattr(self, name)
            if values is not None:
                wanted = f"{len(self.joints)} values (limits.joints)"
                _require(len(values) == len(self.joints), f"limits.{name}", wanted, len(values))
        for name in ("velocity", "max_step"):
            values = getattr(self, name) or ()
            _require(all(value > 0 for value in values), f"limits.{name}", "values above 0", values)
        if self.position_low is not None and self.position_high is not None:
            ordered = all(low < high for low, high in zip(self.position_low, self.position_high, strict=True))
            _require(ordered, "limits.position_low", "values below those of limits.position_high", self.position_low)


@dataclasses.dataclass(frozen=True)
class Manifest(Checked):
    """All of it. `policy` and `stage` say what was exported, `history` how many observations N a decision sees.

    `sampling` has "temperature" (0: greedy) and "top_k" (0: all codes); `provenance` is any plain JSON (config, step,
    hashes, success with its n and interval); `files` maps the artifact's other files to their SHA-256.
    """

    name: str
    policy: str
    stage: str
    history: int
    observation: tuple[Entry, ...]
    action: Action
    sampling: dict[str, float]
    tasks: tuple[Task, ...]
    limits: Limits | None
    provenance: dict[str, Any]
    files: dict[str, str]

    def _check(self) -> None:
        _require(self.history >= 1, "manifest.history", "at least 1", self.history)
        _require(bool(self.observation), "manifest.observation", "at least one entry", "none")
        _require(bool(self.tasks), "manifest.tasks", "at least one task", "none")
        for what, names in (("observation", self.observation), ("tasks", self.tasks)):
            twice = _repeated([one.name for one in names])
            _require(not twice, f"manifest.{what}", "different names", f"{twice!r} twice")
        keys = sorted(self.sampling)
        _require(keys == ["temperature", "top_k"], "manifest.sampling", "the keys temperature and top_k", keys)
        try:
            json.dumps(self.provenance, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"manifest.provenance: expected plain JSON values, found others ({error})") from None

    def to_plain(self) -> dict[str, Any]:
        """As JSON types, `format` and `version` first: what `to_json` writes and a server sends to its clients."""
        return {"format": FORMAT, "version": VERSION} | _lists(dataclasses.asdict(self))

    def to_json(self) -> str:
        """The text of the manifest's file."""
        return json.dumps(self.to_plain(), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read `to_json`'s text. Raises ValueError, one line, for anything else."""
        try:
            plain = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"manifest: expected JSON, found text that does not parse ({error}); export again"
            ) from None
        return cls.from_plain(plain)

    @classmethod
    def from_plain(cls, plain: Any) -> "Manifest":
        """Read `to_plain`'s dictionary. Raises ValueError, one line, for anything else."""
        if not isinstance(plain, Mapping) or plain.get("format") != FORMAT:
            found = plain.get("format") if isinstance(plain, Mapping) else type(plain).__name__
            raise ValueError(
                f"manifest: expected format {FORMAT!r}, found {found!r}; give the folder that cso_jax.export wrote"
            )
        version = plain.get("version")
        if version != VERSION or isinstance(version, bool):
            newer = isinstance(version, int) and version > VERSION
            todo = "update cso_jax on this machine" if newer else "export the policy again"
            raise ValueError(f"manifest: expected version {VERSION}, found {version!r}; {todo}")
        rest = {key: value for key, value in plain.items() if key not in ("format", "version")}
        try:
            return cls.of(rest)
        except ValueError as error:
            raise ValueError(f"{error}; export the policy again") from None

    def task_index(self, text: str) -> int:
        """The index of the task with this name or exactly this sentence. Raises ValueError with the list."""
        for index, task in enumerate(self.tasks):
            if text in (task.name, task.sentence):
                return index
        raise ValueError(f"no task {text[:100]!r}: send the name or the exact sentence of one of: {self.task_list()}")

    def task_list(self) -> str:
        """The tasks for an error's line: names and sentences, the first twenty."""
        known = "; ".join(f"{task.name} ({task.sentence!r})" for task in self.tasks[:20])
        return known + (f"; and {len(self.tasks) - 20} more" if len(self.tasks) > 20 else "")


def _hints(cls: Any) -> dict[str, Any]:
    return {field.name: typing.get_type_hints(cls)[field.name] for field in dataclasses.fields(cls)}


def _require(holds: bool, where: str, expected: str, found: Any) -> None:
    if not holds:
        raise ValueError(f"{where}: expected {expected}, found {found}")


def _converted(value: Any, hint: Any, where: str) -> Any:
    """`value` as what `hint` says: JSON lists and NumPy arrays become tuples, dictionaries dataclasses."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:  # only `X | None` is in use
        return None if value is None else _converted(value, arguments[0], where)
    if origin is Literal:
        _require(isinstance(value, str) and value in arguments, where, " or ".join(arguments), repr(value))
        return value
    if origin is tuple:
        _require(isinstance(value, (list, tuple, np.ndarray)), where, "a list", type(value).__name__)
        return tuple(_converted(item, arguments[0], f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        keyed = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
        _require(keyed, where, "an object with text as keys", type(value).__name__)
        return {key: _converted(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return _instance(value, typing.cast(type, hint), where)
    return value if hint is Any else _scalar(value, hint, where)


def _scalar(value: Any, hint: type, where: str) -> str | int | float:
    if isinstance(value, np.generic):
        value = value.item()
    if hint is str:
        _require(isinstance(value, str), where, "text", repr(value))
        return str(value)
    if hint is bool:
        _require(isinstance(value, bool), where, "true or false", repr(value))
        return bool(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        _require(number and isinstance(value, int), where, "a whole number", repr(value))
        return int(value)
    _require(number and math.isfinite(value), where, "a finite number", repr(value))
    return float(value)


def _instance(value: Any, cls: type, where: str) -> Any:
    if isinstance(value, cls):
        return value
    _require(isinstance(value, Mapping), where, "an object", type(value).__name__)
    names = _hints(cls).keys()
    unknown, missing = sorted(str(key) for key in value.keys() - names), sorted(names - value.keys())
    _require(not unknown, where, f"the keys {', '.join(names)}", f"the unknown key {unknown[0] if unknown else ''!r}")
    _require(not missing, where, f"the key {missing[0] if missing else ''!r}", "none")
    return cls(**value)


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _repeated(names: list[str]) -> str:
    return next((name for index, name in enumerate(names) if name in names[:index]), "")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that JSON has")

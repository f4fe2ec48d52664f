"""What a client asks for, checked against the manifest: a `Request`, or a `Refusal` of one readable line.

A refusal names what was expected, what was found and what to do, and never closes the connection. Beside the entries of
the observation a request may have these keys, all optional:

    task, prompt      the task's name or exact sentence (openpi's clients send `prompt`)
    reset, episode    true: the next episode; a number: this one. Both begin with a fresh key and no history
    request_id        a number or a short name, echoed in the answer and in a refusal
    sent_at           a number, echoed: the client's own clock
    deadline_ms       an answer later than this, after arrival, is of no use: it is refused instead
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from cso_jax.runtime.manifest import Entry, Manifest

PROTOCOL = "cso_jax.policy_server"
PROTOCOL_VERSION = 1
"""Of what this page describes: a server says both first, and a client compares them."""

_NAME = re.compile(r"[\w.:-]{1,64}")
_REFUSAL = re.compile(r"refused \((\w+)(?:, request ([\w.:-]{1,64}))?\): (.*)", re.DOTALL)
_SPANS = 2.0  # how far beyond the action's range a gripper may read, in spans of that range: a scale is further off


class Refusal(ValueError):
    """Why a request is not answered with actions. `reason` is one word, for programs and for counting."""

    def __init__(self, reason: str, text: str, request_id: int | str | None = None) -> None:
        super().__init__(text)
        self.reason = reason
        self.request_id = request_id

    def line(self) -> str:
        """What is sent, as a text frame: `refused (shape, request 7): joints: expected ...`."""
        which = "" if self.request_id is None else f", request {self.request_id}"
        return f"refused ({self.reason}{which}): {' '.join(str(self).split())}"


def read_refusal(line: str) -> Refusal:
    """The refusal that a text frame holds; the reason is "other" where a server writes its errors otherwise."""
    found = _REFUSAL.fullmatch(line)
    return Refusal(found[1], found[3], found[2]) if found else Refusal("other", line)


@dataclasses.dataclass(frozen=True)
class Request:
    """A request that holds: its entries are as in the manifest, or `[N, ...]` where all come with a history."""

    observation: dict[str, np.ndarray]
    task: str | None = None
    reset: bool = False
    episode: int | None = None
    request_id: int | str | None = None
    sent_at: float | None = None
    deadline_s: float | None = None


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a server reads observations. `rename` maps a client's keys to entries; `ignore_unknown` drops other keys."""

    channels_first: bool = False
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignore_unknown: bool = False


def message_bytes(manifest: Manifest) -> int:
    """The size that a request may have: every entry with its history, low-dimensional ones as float64, and a margin."""
    entries = sum(math.prod(entry.shape) * (1 if entry.kind == "image" else 8) for entry in manifest.observation)
    return entries * manifest.history + 64 * 1024


def read_request(plain: Any, manifest: Manifest, reading: Reading) -> Request:
    """Check a decoded frame. Raises Refusal, with the request's id where it has one."""
    if not isinstance(plain, Mapping) or not all(isinstance(key, str) for key in plain):
        raise Refusal("malformed", f"expected a map with text as keys, found {_kind(plain)}")
    request_id = plain.get("request_id")
    if request_id is not None and not _is_id(request_id):
        raise Refusal("malformed", "request_id: expected a whole number or a name of letters, digits and .:-_")
    try:
        return Request(
            observation=read_observation(plain, manifest, reading),
            task=_task(plain, manifest),
            reset=_value(plain, "reset", (bool, np.bool_), "true or false") or False,
            episode=_value(plain, "episode", (int, np.integer), "a whole number"),
            request_id=request_id,
            sent_at=_value(plain, "sent_at", (int, float, np.number), "a number"),
            deadline_s=_deadline(plain),
        )
    except Refusal as refusal:
        refusal.request_id = request_id
        raise


def read_observation(plain: Mapping[str, Any], manifest: Manifest, reading: Reading) -> dict[str, np.ndarray]:
    """The entries of the manifest, each checked. Raises Refusal."""
    given: dict[str, Any] = {}
    for path, value in _flat({key: value for key, value in plain.items() if key not in _BESIDE}).items():
        name = reading.rename.get(path) or path
        given[name] = value
    entries = {entry.name: entry for entry in manifest.observation}
    for path in [path for path in given if path not in entries]:
        name = path.rpartition("/")[2]  # {"images": {"front": ...}} is the entry "front"
        if name in entries and name not in given:
            given[name] = given.pop(path)
    wanted = ", ".join(_described(entry, manifest) for entry in manifest.observation)
    missing = [name for name in entries if name not in given]
    unknown = sorted(given.keys() - entries.keys())
    if missing:
        also = f", and the unknown {unknown[0][:60]!r}" if unknown else ""
        raise Refusal("missing_key", f"expected the entries {wanted}; found no {missing[0]!r}{also}")
    if unknown and not reading.ignore_unknown:
        raise Refusal("unknown_key", f"expected the entries {wanted}; found {unknown[0][:60]!r}: leave it out")
    found = {name: _entry(entry, given[name], manifest, reading) for name, entry in entries.items()}
    stacked = {name for name, value in found.items() if value.ndim > len(entries[name].shape)}
    if stacked and len(stacked) != len(entries):
        alone = next(name for name in entries if name not in stacked)
        raise Refusal("shape", f"expected all entries with a history or none, found {alone!r} without one")
    return found


_BESIDE = ("task", "prompt", "reset", "episode", "request_id", "sent_at", "deadline_ms")


def _entry(entry: Entry, value: Any, manifest: Manifest, reading: Reading) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise Refusal("dtype", f"{entry.name}: expected an array {_described(entry, manifest)}, found {_kind(value)}")
    if entry.kind == "image":
        if value.dtype != np.uint8:
            hint = ": send 0 to 255, not 0 to 1" if value.dtype.kind == "f" else ""
            raise Refusal("dtype", f"{entry.name}: expected uint8, found {value.dtype}{hint}")
        return _image(entry, value, manifest, reading)
    if value.dtype not in (np.float32, np.float64):
        raise Refusal("dtype", f"{entry.name}: expected float32 (or float64), found {value.dtype}: convert it")
    _shape(entry, value.shape, entry.shape, manifest)
    with np.errstate(over="ignore"):
        value = value.astype(np.float32)
    if not np.isfinite(value).all():
        index = np.argwhere(~np.isfinite(value))[0].tolist()
        raise Refusal("not_finite", f"{entry.name}: expected finite numbers, found {value[tuple(index)]} at {index}")
    _gripper(entry, value, manifest)
    return value


def _image(entry: Entry, value: np.ndarray, manifest: Manifest, reading: Reading) -> np.ndarray:
    height, width, channels = entry.shape
    first = (channels, height, width)
    shape = value.shape[1:] if manifest.history > 1 and value.ndim == 4 else value.shape
    if shape == first and not reading.channels_first:
        raise Refusal(
            "channel_order",
            f"{entry.name}: expected {list(entry.shape)} (height, width, RGB), found {list(shape)}: channels come "
            "first; transpose it, or start the server with --images=chw",
        )
    if shape == entry.shape and reading.channels_first and first != entry.shape:
        raise Refusal(
            "channel_order",
            f"{entry.name}: expected {list(first)} (--images=chw), found {list(shape)}: channels come last; transpose "
            "it, or start the server without --images=chw",
        )
    _shape(entry, value.shape, first if reading.channels_first else entry.shape, manifest)
    return np.moveaxis(value, -3, -1) if reading.channels_first else value


def _shape(entry: Entry, found: tuple[int, ...], expected: tuple[int, ...], manifest: Manifest) -> None:
    stacked = (manifest.history, *expected)
    if found != expected and not (manifest.history > 1 and found == stacked):
        history = f" (or {list(stacked)} with its history)" if manifest.history > 1 else ""
        raise Refusal("shape", f"{entry.name}: expected shape {list(expected)}{history}, found {list(found)}")


def _gripper(entry: Entry, value: np.ndarray, manifest: Manifest) -> None:
    """Refuse readings of a robot's gripper in other units: millimetres or percent where metres are meant.

    Only for a robot, and only where an entry lists what the actions list, or is called after the gripper: there the
    actions' range tells the scale.
    """
    action = manifest.action
    grippers = [index for index, name in enumerate(action.names) if "gripper" in name.lower()]
    if manifest.limits is None or not grippers:
        return
    if entry.shape == (action.dim,):
        checked = [(value[..., index], index) for index in grippers]
    elif "gripper" in entry.name.lower() and len(grippers) == 1:
        checked = [(value, grippers[0])]
    else:
        return
    for readings, index in checked:
        low, high = action.low[index], action.high[index]
        slack = _SPANS * (high - low)
        outside = readings[(readings < low - slack) | (readings > high + slack)]
        if outside.size:
            raise Refusal(
                "range",
                f"{entry.name}: expected {action.names[index]} near {low:g} to {high:g} ({action.units}), found "
                f"{float(outside.flat[0]):g}: are its units the same?",
            )


def _task(plain: Mapping[str, Any], manifest: Manifest) -> str | None:
    given = [plain[key] for key in ("task", "prompt") if plain.get(key) is not None]
    if not given:
        return None
    if not all(isinstance(text, str) for text in given):
        raise Refusal("task", f"task: expected text, found {_kind(given[0])}")
    try:
        indices = {manifest.task_index(text) for text in given}
    except ValueError as error:
        raise Refusal("task", str(error)) from None
    if len(indices) > 1:
        raise Refusal("task", "expected task and prompt to name the same task, found two: send one of them")
    text: str = given[0]
    return text


def _deadline(plain: Mapping[str, Any]) -> float | None:
    value = _value(plain, "deadline_ms", (int, float, np.number), "a number of milliseconds above 0")
    if value is not None and not value > 0:
        raise Refusal("malformed", "deadline_ms: expected a number of milliseconds above 0")
    return None if value is None else float(value) / 1000


def _value(plain: Mapping[str, Any], key: str, kinds: tuple[type, ...], expected: str) -> Any:
    value = plain.get(key)
    if value is None:
        return None
    right = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    if not right or (isinstance(value, (float, np.floating)) and not math.isfinite(value)):
        raise Refusal("malformed", f"{key}: expected {expected}, found {_kind(value)}")
    return value.item() if isinstance(value, np.generic) else value


def _is_id(value: Any) -> bool:
    number = isinstance(value, int) and not isinstance(value, bool)
    return number or (isinstance(value, str) and bool(_NAME.fullmatch(value)))


def _flat(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in plain.items():
        if not isinstance(key, str):
            raise Refusal("malformed", f"expected text as keys, found {_kind(key)}")
        found |= _flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _described(entry: Entry, manifest: Manifest) -> str:
    return f"{entry.name} {entry.dtype}{list(entry.shape)}"


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array {value.dtype}{list(value.shape)}"
    return f"{type(value).__name__} {value!r:.40}" if isinstance(value, (int, float, str)) else type(value).__name__

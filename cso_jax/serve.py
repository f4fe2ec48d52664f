"""Serve an exported policy to robots and to evaluations, until Ctrl-C or SIGTERM:

    python -m cso_jax.serve ARTIFACT [--host=127.0.0.1] [--port=8000] [--dialect=openpi|vla-eval] [--token-file=FILE]
                            [--images=hwc|chw] [--rename=THEIRS=OURS,...] [--window-ms=2] [--seed=N] [--max-clients=64]

ARTIFACT is the folder that cso_jax.export wrote. "openpi" is what openpi's clients speak (and cso_jax.runtime.client),
"vla-eval" the protocol of vla-eval's benchmarks. Other machines reach it only with --host, and then a token is needed,
in a file or in the environment variable CSO_JAX_TOKEN; clients send it as "Authorization: Api-Key TOKEN". --images=chw
takes camera images with the channels first. --rename gives a client's keys the names of the policy's entries.
GET /healthz answers OK once robots can connect, GET /metrics counts.
"""

import asyncio
import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Any

from cso_jax import telemetry
from cso_jax.cli import EXIT_ERROR, fail, run_command

USAGE = "python -m cso_jax.serve ARTIFACT [--host=HOST] [--port=PORT] [--dialect=openpi|vla-eval] [--token-file=FILE]"
TOKEN = "CSO_JAX_TOKEN"
_OPTIONS = ("host", "port", "dialect", "token-file", "images", "rename", "window-ms", "seed", "max-clients")


class ServeError(ValueError):
    """The command line, or what it names, cannot be served."""


@dataclasses.dataclass(frozen=True)
class _Given:
    artifact: Path
    options: Any  # runtime.server.Options


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0 after a signal has stopped the server, 1 where it cannot serve."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments or "-h" in arguments:
        telemetry.show(__doc__ or "")
        return 0
    try:
        given = _parse(arguments)
        policy = _load(given.artifact)
        return _serve(policy, given)
    except (ServeError, ValueError) as error:
        return fail(error)
    except ImportError as error:
        return fail(ServeError(f"{error}: pip install -r requirements-robot.txt, or pip install 'cso_jax[robot]'"))
    except OSError as error:
        return fail(ServeError(f"cannot serve: {error.strerror or error}; choose another --port, or stop what has it"))


def _parse(arguments: list[str]) -> _Given:
    from cso_jax.runtime.requests import Reading
    from cso_jax.runtime.server import Options

    paths, values = _split(arguments)
    if len(paths) != 1:
        raise ServeError(f"usage: {USAGE}")
    images = values.get("images", "hwc")
    if images not in ("hwc", "chw"):
        raise ServeError(f"--images is hwc (height, width, channels) or chw (channels first); got {images!r}")
    reading = Reading(channels_first=images == "chw", rename=_renames(values.get("rename", "")))
    options = Options(
        host=values.get("host", "127.0.0.1"),
        port=_number(values, "port", 8000, int, 0, 65535),
        dialect=values.get("dialect", "openpi"),
        token=_token(values.get("token-file", "")),
        reading=reading,
        window_s=_number(values, "window-ms", 2.0, float, 0, 1000) / 1000,
        seed=_number(values, "seed", 0, int, 0, 2**62) if "seed" in values else None,
        max_clients=_number(values, "max-clients", 64, int, 1, 10_000),
    )
    return _Given(Path(os.path.expanduser(paths[0])), options)


def _split(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Paths, and the options `--name=value` or `--name value`."""
    paths: list[str] = []
    values: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--"):
            paths.append(argument)
            continue
        name, equals, value = argument[2:].partition("=")
        if name not in _OPTIONS:
            raise ServeError(f"no option --{name}; there are {', '.join('--' + one for one in _OPTIONS)}")
        if not equals and (not rest or rest[0].startswith("--")):
            raise ServeError(f"--{name} needs a value: --{name}=VALUE")
        values[name] = value if equals else rest.pop(0)
    return paths, values


def _number(values: dict[str, str], name: str, default: Any, kind: type, low: float, high: float) -> Any:
    try:
        number = kind(values.get(name, default))
    except ValueError:
        number = None
    if number is None or not low <= number <= high:
        raise ServeError(f"--{name} is a number from {low:g} to {high:g}; got {values[name]!r}")
    return number


def _renames(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    if not all(theirs and ours for theirs, _, ours in pairs):
        raise ServeError(f"--rename is THEIRS=OURS, several with commas between; got {text!r}")
    return {theirs: ours for theirs, _, ours in pairs}


def _token(path: str) -> str:
    if not path:
        return os.environ.get(TOKEN, "").strip()
    try:
        token = Path(os.path.expanduser(path)).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ServeError(f"--token-file={path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not token:
        raise ServeError(f"--token-file={path} is empty: write a long random text into it")
    return token


def _load(artifact: Path) -> Any:
    from cso_jax.runtime.artifact import load

    if not artifact.exists():
        raise ServeError(f"{artifact} is not there; give the folder that python -m cso_jax.export wrote")
    try:
        return load(artifact)
    except RuntimeError as error:  # ArtifactError is one
        raise ServeError(str(error)) from None


def _serve(policy: Any, given: _Given) -> int:
    from cso_jax.runtime.server import PolicyServer

    options, manifest = given.options, policy.manifest
    unknown = sorted(set(options.reading.rename.values()) - {entry.name for entry in manifest.observation})
    if unknown:
        names = ", ".join(entry.name for entry in manifest.observation)
        raise ServeError(f"--rename: no entry {unknown[0]!r}; the policy's are {names}")
    server = PolicyServer(policy, options)
    telemetry.log(f"{manifest.name}: compiling for {', '.join(map(str, policy.batch_sizes))} robots at a time")

    def started(port: int) -> None:
        guarded = "a token is asked for" if options.token else "without a token"
        telemetry.log(f"serving {manifest.name} at ws://{options.host}:{port} ({options.dialect}, {guarded})")

    asyncio.run(_until_signal(server, started))
    telemetry.log("stopped; all that was asked has been answered")
    return 0


async def _until_signal(server: Any, started: Any) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def heard() -> None:
        if stop.is_set():
            os._exit(EXIT_ERROR)  # the second signal: at once
        telemetry.log("stopping: running calls are finished first; once more to leave at once")
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, heard)
    await server.run(stop, started)


if __name__ == "__main__":
    run_command(main)

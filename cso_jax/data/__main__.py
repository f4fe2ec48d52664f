"""Demonstration files and task embeddings from the command line:

    python -m cso_jax.data info FOLDER_OR_FILE ...
    python -m cso_jax.data download SUITE FOLDER [--yes] [--revision=main]
    python -m cso_jax.data language TASKS OUT.npz --model=minilm|clip [--weights=FOLDER]
    python -m cso_jax.data language OUT.npz --config=configs/X.py --model=minilm|clip [--weights=FOLDER]
    python -m cso_jax.data convert STORES OUT [--fps=20] [--robot=NAME] [--video=true|false] [--images=...]
    python -m cso_jax.data convert LEROBOT OUT [--images=as_is|rotate180|flip] [--proprio=as_is|ee8|joints9]
        [--cameras=NAME:OURS,...] [--env=libero] [--tasks=SUITES,TASKS]

`info` shows what demonstration files hold and exits with 1 if any has a problem. `download` fetches LIBERO's official
demonstrations. `language` embeds task sentences; TASKS are suites or task names, separated by commas. `convert` turns
a folder of episode files (a workdir's demos/ or rsft/) into a LeRobot data set of version 3, or such a set into episode
files: docs/data.md. --to=lerobot|hdf5 says which, where the source does not.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cso_jax import config as configs
from cso_jax import envs, telemetry
from cso_jax.cli import fail
from cso_jax.data.language import embeddings
from cso_jax.data.lerobot import episodes as lerobot_episodes
from cso_jax.data.lerobot import layout as lerobot_layout
from cso_jax.data.lerobot import reading as lerobot_reading
from cso_jax.data.lerobot import stores as lerobot_stores
from cso_jax.data.libero import hub, inventory, official
from cso_jax.data.store import StoreError
from cso_jax.files import expanded

_FLAGS = ("--yes", "--help")
_TO_LEROBOT = {"fps", "robot", "video"}
_TO_HDF5 = {"proprio", "cameras", "env", "tasks"}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 1 after an error or for files with problems."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or "--help" in given:
        telemetry.show(__doc__ or "")
        return 0 if given else 1
    commands: dict[str, tuple[Callable[[list[str], dict[str, str]], int], set[str]]] = {
        "info": (info, set()),
        "download": (download, {"yes", "revision"}),
        "language": (embed, {"model", "weights", "config"}),
        "convert": (convert, {"to", "images", *_TO_LEROBOT, *_TO_HDF5}),
    }
    try:
        if given[0] not in commands:
            raise configs.ConfigError(f"no command {given[0]!r}; there are {', '.join(commands)}")
        command, known = commands[given[0]]
        places, options = _parse(given[1:])
        unknown = sorted(options.keys() - known)
        if unknown:
            raise configs.ConfigError(f"{given[0]} has no option --{unknown[0]}; see python -m cso_jax.data --help")
        return command(places, options)
    except (configs.ConfigError, StoreError, embeddings.LanguageError) as error:
        return fail(error)
    except KeyboardInterrupt:
        telemetry.log("interrupted; what was fetched is kept, nothing half-written: run the same command to go on")
        return 130


def _parse(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Arguments in their order, and options `--name=value`."""
    words = [f"{word}=true" if word in _FLAGS else word for word in arguments]
    places = [word for word in words if not word.startswith("--")]
    bare = [word for word in words if word.startswith("--") and "=" not in word]
    if bare:
        raise configs.ConfigError(f"{bare[0]} needs a value: {bare[0]}=VALUE")
    options, overrides = configs.split_arguments([word for word in words if word.startswith("--")])
    if overrides:
        raise configs.ConfigError(f"--config.{overrides[0][0]} has no effect here")
    return places, options


def info(places: list[str], _options: dict[str, str]) -> int:
    """Show what files hold; 1 if any of them has a problem, or there are none."""
    if not places:
        raise configs.ConfigError("info needs a folder or a file: python -m cso_jax.data info FOLDER")
    paths = []
    for place in places:
        found = official.files(place)
        if not found:
            raise StoreError(f"no HDF5 files in {place} or its subfolders")
        paths += found
    looked = [inventory.look(path) for path in telemetry.progress(paths, "files", unit="file")]
    telemetry.show(inventory.table(looked))
    return 1 if any(one.problems for one in looked) else 0


def download(places: list[str], options: dict[str, str]) -> int:
    """Fetch a suite's official demonstrations."""
    if len(places) != 2:
        raise configs.ConfigError("download needs a suite and a folder: python -m cso_jax.data download SUITE FOLDER")
    suite, destination = places[0], expanded(places[1])
    revision = options.get("revision", "main")
    sizes = hub.listing(suite, revision=revision)
    wanted = hub.missing(sizes, destination)
    telemetry.show(
        f"{suite}: {len(sizes)} files, {sum(sizes.values()) / 1e9:.2f} GB on {hub.REPOSITORY}; "
        f"{len(wanted)} files, {sum(wanted.values()) / 1e9:.2f} GB still to fetch into {destination}"
    )
    if not wanted:
        return 0
    hub.check_space(sum(wanted.values()), destination)
    if options.get("yes") != "true" and not _agreed():
        raise StoreError("nothing was fetched; give --yes to go ahead without being asked")
    hub.fetch(wanted, destination, revision=revision)
    telemetry.show(f"done: python -m cso_jax.data info {destination} shows what was fetched")
    return 0


def _agreed() -> bool:
    if not sys.stdin.isatty():
        return False
    telemetry.show("fetch them? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def embed(places: list[str], options: dict[str, str]) -> int:
    """Write the vectors of task sentences to a file that config.encoder.task_embedding_file can name."""
    usage = "python -m cso_jax.data language TASKS OUT.npz --model=minilm|clip [--weights=FOLDER]"
    wanted = 1 if "config" in options else 2
    if len(places) != wanted or "model" not in options:
        raise configs.ConfigError(f"language needs tasks (or --config), an output file and a model: {usage}")
    if "config" in options:
        settings = configs.load(options["config"]).env.to_dict()
    else:
        settings = {"name": "libero", "tasks": tuple(places[0].split(","))}
    output = Path(places[-1])
    if output.suffix != ".npz":
        raise configs.ConfigError(f"the output is a .npz file; got {output}")
    try:
        tasks = envs.task_names(settings)
        sentences = [envs.sentence(settings, task) for task in tasks]
    except (ValueError, ImportError, FileNotFoundError) as error:
        raise configs.ConfigError(str(error)) from None
    vectors = embeddings.embed(sentences, options["model"], weights=options.get("weights"))
    embeddings.save(output, tasks, vectors, sentences)
    telemetry.show(f"{len(tasks)} tasks, {vectors.shape[1]} numbers each: {output}")
    return 0


def convert(places: list[str], options: dict[str, str]) -> int:
    """Episode files to a LeRobot data set, or back."""
    if len(places) != 2:
        raise configs.ConfigError("convert needs a source and a new folder: python -m cso_jax.data convert SOURCE OUT")
    source, out = map(expanded, places)
    if not source.exists():
        raise StoreError(f"no {source}; name a folder of episode files, or a LeRobot data set")
    to = options.get("to") or ("hdf5" if lerobot_reading.is_data_set(source) else "lerobot")
    orientation = options.get("images", "as_is")
    _one_of("to", to, ("lerobot", "hdf5"))
    _one_of("images", orientation, lerobot_layout.ORIENTATIONS)
    useless = sorted(options.keys() & (_TO_HDF5 if to == "lerobot" else _TO_LEROBOT))
    if useless:
        raise configs.ConfigError(f"--{useless[0]} has no effect on the way to {to}; leave it out")
    if to == "lerobot":
        rate, video = options.get("fps", "20"), options.get("video", "true")
        _one_of("video", video, ("true", "false"))
        if not rate.isdecimal() or not int(rate):
            raise configs.ConfigError(f"--fps must be a whole number of frames per second, got {rate}")
        count = lerobot_episodes.to_lerobot(
            source, out, fps=int(rate), robot=options.get("robot", ""), orientation=orientation, video=video == "true"
        )
        telemetry.show(f"{count} episodes: {out} is a LeRobot data set")
        return 0
    proprio = options.get("proprio", "as_is")
    _one_of("proprio", proprio, tuple(lerobot_stores.PROPRIO))
    pairs = [pair.partition(":") for pair in options.get("cameras", "").split(",") if pair]
    if not all(theirs and ours for theirs, _, ours in pairs):
        raise configs.ConfigError(f"--cameras takes pairs THEIRS:OURS, separated by commas; got {options['cameras']}")
    tasks = tuple(name for name in options.get("tasks", "").split(",") if name)
    choices = lerobot_stores.Choices(
        orientation, proprio, {theirs: ours for theirs, _, ours in pairs}, options.get("env", "libero"), tasks
    )
    written = lerobot_stores.to_store(source, out, choices)
    files = f"{len(written)} file{'s' * (len(written) > 1)}"
    telemetry.show(f"{sum(written.values())} episodes in {files}: python -m cso_jax.data info {out} shows them")
    return 0


def _one_of(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise configs.ConfigError(f"--{name} must be one of {', '.join(allowed)}; got {value!r}")


if __name__ == "__main__":
    sys.exit(main())

"""All commands under one name; `python -m cso_jax` is the same:

    cso-jax train --config=configs/quickstart.py [--workdir=DIR] [--config.key=value ...]
    cso-jax evaluate --workdir=DIR [--stage=STAGE] [--episodes=N]
    cso-jax export WORKDIR OUT [--stage=STAGE] ...
    cso-jax serve ARTIFACT [--port=PORT] ...
    cso-jax data info|download|language ...
    cso-jax import-quest FILE.pth OUT --task-embeddings=FILE ...

COMMAND --help says more. They are python -m cso_jax.main, .evaluate, .export, .serve, .data and .import_quest.
"""

import importlib
import sys

from cso_jax import telemetry
from cso_jax.cli import fail, run_command

COMMANDS = {
    "train": "cso_jax.main",
    "evaluate": "cso_jax.evaluate",
    "export": "cso_jax.export",
    "serve": "cso_jax.serve",
    "data": "cso_jax.data.__main__",
    "import-quest": "cso_jax.import_quest",
}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status of the command, 1 for one that there is not."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("--help", "-h", "help"):
        telemetry.show(__doc__ or "")
        return 0 if given else 1
    if given[0] not in COMMANDS:
        return fail(ValueError(f"no command {given[0]!r}; there are {', '.join(COMMANDS)}: cso-jax --help"))
    status: int = importlib.import_module(COMMANDS[given[0]]).main(given[1:])
    return status


def entry() -> None:
    """The console script `cso-jax`."""
    run_command(main)


if __name__ == "__main__":
    entry()

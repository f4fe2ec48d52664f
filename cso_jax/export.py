"""Export a finished stage of a run as an artifact: a folder that a robot's computer can serve.

    python -m cso_jax.export WORKDIR OUT [--stage=spo|rsft|imitation|reference] [--name=TEXT]
        [--horizon=N] [--chunk=N] [--temperature=X] [--top_k=N]

The last stage of the cascade by default, and it acts as it was evaluated. `--horizon` is how many actions are executed
per decision, `--chunk` how many a decision answers (the others bridge latency). `--temperature=0` is greedy. What the
folder holds: `cso_jax/runtime/artifact.py`, docs/robot.md.
"""

import sys
from pathlib import Path
from typing import Any

from cso_jax import config as configs
from cso_jax import telemetry
from cso_jax.cli import fail, folder_of, run_command, supervised
from cso_jax.evaluate import config_of

USAGE = (
    "python -m cso_jax.export WORKDIR OUT [--stage=spo|rsft|imitation|reference] [--name=TEXT] [--horizon=N] "
    "[--chunk=N] [--temperature=X] [--top_k=N]"
)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status as `cso_jax.main.main` does."""
    given = sys.argv[1:] if arguments is None else arguments
    if "--help" in given:
        telemetry.show(__doc__ or "")
        return 0
    places = [argument for argument in given if not argument.startswith("--")]
    try:
        if len(places) != 2:
            raise configs.ConfigError(f"usage: {USAGE}")
        options, overrides = configs.split_arguments([one for one in given if one.startswith("--")])
        workdir, out = map(folder_of, places)
        if not (workdir / "config.json").is_file():
            raise configs.ConfigError(f"{workdir} is not the workdir of a run: it has no config.json")
        if overrides:
            raise configs.ConfigError(f"config.{overrides[0][0]} cannot be changed: usage: {USAGE}")
        config = config_of(workdir)
        choice = _choice(config, workdir, options, out.name)
    except configs.ConfigError as error:
        return fail(error)
    return supervised(config, workdir, lambda stop: _export(config, workdir, choice, out, stop))


def _choice(config, workdir: Path, options: dict[str, str], name: str) -> Any:
    from cso_jax.exporting import Choice, exportable

    unknown = sorted(options.keys() - {"stage", "name", "horizon", "chunk", "temperature", "top_k"})
    if unknown:
        raise configs.ConfigError(f"no option --{unknown[0]}; usage: {USAGE}")
    there = exportable(config, workdir)
    stage = options.get("stage") or (there[-1] if there else "none")
    if stage not in there:
        raise configs.ConfigError(
            f"{workdir} has no policy of stage {stage!r} to export; it has {', '.join(there) or 'none'}"
        )
    try:
        return Choice(
            stage=stage,
            name=options.get("name", name),
            execution_horizon=int(options.get("horizon", 0)),
            chunk_length=int(options.get("chunk", 0)),
            temperature=float(options["temperature"]) if "temperature" in options else None,
            top_k=int(options["top_k"]) if "top_k" in options else None,
        )
    except ValueError as error:
        raise configs.ConfigError(f"--horizon, --chunk, --top_k and --temperature are numbers: {error}") from None


def _export(config, workdir: Path, choice, out: Path, stop) -> None:
    from cso_jax.cascade import open_run
    from cso_jax.exporting import export
    from cso_jax.stages import provenance, table

    for need in table.EVALUATIONS[choice.stage].of:
        provenance.finish(config, workdir, need)
    run = open_run(config, workdir, stop)
    try:
        manifest = export(run, choice, out)
    finally:
        run.close()
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    telemetry.log(
        f"{out}: {manifest.policy} after {manifest.stage}, {len(manifest.tasks)} tasks, {size / 1e6:.1f} MB; serve it "
        f"with: python -m cso_jax.serve {out}"
    )


if __name__ == "__main__":
    run_command(main)

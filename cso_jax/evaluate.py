"""Evaluate a finished stage of a run again, with as many episodes as you like:

    python -m cso_jax.evaluate --workdir=DIR [--stage=imitation|rsft|spo|reference|ceiling|greedy] [--episodes=N] \
        [--protocol=NAME]

"reference" is behaviour cloning on the same demonstrations, "ceiling" the same through the codebook, "greedy" the
imitation policy without sampling. Uses the run's own config. Episodes that the run has evaluated already are taken
over, not run again; the rows go to `evaluation_<stage>.jsonl`, and the run's results stay as they are.

--protocol=NAME evaluates under another protocol of the benchmark's, into a file of its own: for LIBERO settle, openpi
or quest_compat, and pro:libero_object_swap and the like for LIBERO-PRO's variants of the tasks (docs/libero.md).

A policy that a server has, somebody else's too, in the episodes of a config (docs/policies.md):

    python -m cso_jax.evaluate --config=configs/X.py --policy=ws://HOST:PORT --workdir=DIR [--dialect=openpi|vla-eval] \
        [--mapping=own|libero] [--execute=N] [--gripper=inverted] [--timeout=S] [--episodes=N] [--protocol=NAME] \
        [--config.key=value ...]

The rows go to DIR/evaluation_remote.jsonl, with what the server says of itself.
"""

import sys
from pathlib import Path

from ml_collections import ConfigDict

from cso_jax import config as configs
from cso_jax import telemetry
from cso_jax.cli import fail, folder_of, run_command, supervised
from cso_jax.files import step_folders
from cso_jax.stages import table

USAGE = (
    "python -m cso_jax.evaluate --workdir=DIR [--stage=imitation|rsft|spo|reference|ceiling|greedy] [--episodes=N] "
    "[--protocol=NAME]\n   or: python -m cso_jax.evaluate --config=FILE --policy=ws://HOST:PORT --workdir=DIR "
    "[--dialect=openpi|vla-eval] [--mapping=own|libero] [--execute=N] [--gripper=inverted] [--timeout=S] "
    "[--episodes=N] [--protocol=NAME] [--config.key=value ...]"
)
_REMOTE = {"config", "policy", "workdir", "dialect", "mapping", "execute", "gripper", "timeout", "episodes", "protocol"}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status as `cso_jax.main.main` does."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments:
        telemetry.show(f"usage: {USAGE}")
        return 0
    if any(argument.startswith("--policy") for argument in arguments):
        return _remote_main(arguments)
    try:
        workdir, stage, episodes, protocol = _parse(arguments)
        config = config_of(workdir)
    except configs.ConfigError as error:
        return fail(error)
    return supervised(config, workdir, lambda stop: _evaluate(config, workdir, stage, episodes, protocol, stop))


def _parse(arguments: list[str]) -> tuple[Path, str, int, str]:
    options, overrides = configs.split_arguments(arguments)
    unknown = sorted(options.keys() - {"workdir", "stage", "episodes", "protocol", "help"})
    if unknown or overrides or "workdir" not in options:
        raise configs.ConfigError(f"usage: {USAGE}")
    workdir = folder_of(options["workdir"])
    if not (workdir / "config.json").is_file():
        raise configs.ConfigError(f"{workdir} is not the workdir of a run: it has no config.json")
    checkpoints = workdir / "checkpoints"
    trained = [one.name for one in table.EVALUATIONS.values() if all(step_folders(checkpoints / of) for of in one.of)]
    stage = options.get("stage") or next((step for step in reversed(table.STEPS) if step in trained), "none")
    if stage not in trained:
        raise configs.ConfigError(f"{workdir} has no policy of stage {stage!r}; it has {', '.join(trained) or 'none'}")
    episodes = options.get("episodes", "0")
    if not episodes.isdecimal():
        raise configs.ConfigError(f"--episodes is a number of episodes per task; got {episodes!r}")
    return workdir, stage, int(episodes), options.get("protocol", "")


def config_of(workdir: Path) -> ConfigDict:
    """The config that the run was made with. Raises ConfigError where it cannot be read."""
    stored = workdir / "config.json"
    try:
        return configs.from_json(stored.read_text("utf-8"))
    except OSError as error:
        raise configs.ConfigError(f"{stored} cannot be read: {error.strerror}") from None
    except ValueError as error:  # ConfigError is one, and so is text in another encoding
        raise configs.ConfigError(f"{stored}: {error}; put it back, or evaluate another --workdir") from None


def _remote_main(arguments: list[str]) -> int:
    """Evaluate a server's policy."""
    try:
        from cso_jax.runtime.remote import DIALECTS, MAPPINGS, Remote
    except ImportError as error:
        return fail(configs.ConfigError(f"policies on servers need {error.name}: pip install -e '.[robot]'"))
    try:
        options, overrides = configs.split_arguments(arguments)
        missing = [name for name in ("config", "policy", "workdir") if not options.get(name)]
        unknown = sorted(options.keys() - _REMOTE)
        if missing or unknown:
            what = f"--{missing[0]} is missing" if missing else f"unknown option --{unknown[0]}"
            raise configs.ConfigError(f"{what}; usage: {USAGE}")
        for name, known in (("dialect", DIALECTS), ("mapping", MAPPINGS), ("gripper", ("as_sent", "inverted"))):
            if options.get(name) is not None and options[name] not in known:
                raise configs.ConfigError(f"--{name} must be one of {', '.join(known)}; got {options[name]!r}")
        for name in ("execute", "episodes", "timeout"):
            if not options.get(name, "1").isdecimal() or (name == "timeout" and options.get(name) == "0"):
                raise configs.ConfigError(f"--{name} must be a whole number; got {options[name]!r}")
        config = configs.load(options["config"], overrides)
        workdir = folder_of(options["workdir"])
        remote = Remote(
            options["policy"],
            dialect=options.get("dialect", "openpi"),
            mapping=options.get("mapping", "own"),
            execute=int(options.get("execute", "0")),
            invert_gripper=options.get("gripper") == "inverted",
            timeout_s=float(options.get("timeout", "60")),
        )
    except configs.ConfigError as error:
        return fail(error)
    episodes, protocol = int(options.get("episodes", "0")), options.get("protocol", "")
    return supervised(config, workdir, lambda stop: _evaluate_remote(config, workdir, remote, episodes, protocol, stop))


def _evaluate_remote(config, workdir: Path, remote, episodes: int, protocol: str, stop) -> None:
    from cso_jax import envs
    from cso_jax.cascade import open_run, under_protocol
    from cso_jax.evaluation import run_evaluation
    from cso_jax.rollout.runner import usable_cpus
    from cso_jax.run import RunError
    from cso_jax.runtime.remote import RemoteActor, RemoteError

    run = open_run(config, workdir, stop)
    try:
        if protocol:
            run = under_protocol(run, protocol)
        sentences = {task: envs.sentence(run.settings, task) for task in run.tasks}
        workers = config.rollout.workers or usable_cpus()
        actor = RemoteActor(remote, sentences, episodes=workers * config.rollout.slots, action_dim=run.spec.action_dim)
        try:
            about = {
                "policy": remote.url,
                "dialect": remote.dialect,
                "mapping": remote.mapping,
                "executed": actor.execute,
                "gripper": "inverted" if remote.invert_gripper else "as_sent",
            }
            name = f"evaluation_remote{'_' + protocol.replace(':', '_') if protocol else ''}.jsonl"
            _require_rows_of(workdir / name, about)
            rows = run_evaluation(
                run, "remote", episodes_per_task=episodes or None, rows_file=name, protocol=protocol, act=actor,
                about=about | {"server": actor.metadata}, on_end=lambda record: actor.ended(record.request.key),
            )  # fmt: skip
        finally:
            actor.close()
    except RemoteError as error:
        raise RunError(str(error)) from None
    finally:
        run.close()
    _show(run.tasks, rows)


def _require_rows_of(path: Path, about: dict) -> None:
    """Raises RunError where a file holds rows that were made in another way."""
    from cso_jax.files import read_jsonl
    from cso_jax.run import RunError

    for row in read_jsonl(path):
        for name, value in about.items():
            if row.get(name) != value:
                raise RunError(
                    f"{path} holds episodes with {name} {row.get(name)!r}, and now it is {value!r}; choose another "
                    "--workdir, or move the file away"
                )


def _show(tasks, rows) -> None:
    from cso_jax.statistics import wilson

    for task in tasks:
        wins = [row["success"] for row in rows if row["task"] == task]
        low, high = wilson(sum(wins), len(wins))
        telemetry.show(f"{task:32s} {sum(wins) / len(wins):.3f}  95 % {low:.3f} to {high:.3f}  n = {len(wins)}")


def _evaluate(config, workdir: Path, stage: str, episodes: int, protocol: str, stop) -> None:
    from cso_jax.cascade import open_run, under_protocol
    from cso_jax.evaluation import run_evaluation
    from cso_jax.files import append_jsonl, read_jsonl
    from cso_jax.stages import provenance

    for need in table.EVALUATIONS[stage].of:
        provenance.finish(config, workdir, need)  # rows of a policy that is no longer there do not count
    name = f"evaluation_{stage}{'_' + protocol.replace(':', '_') if protocol else ''}.jsonl"
    if not protocol and not (workdir / name).exists():
        append_jsonl(workdir / name, [r for r in read_jsonl(workdir / "episodes.jsonl") if r["stage"] == stage])
    run = open_run(config, workdir, stop)
    try:
        if protocol:
            run = under_protocol(run, protocol)
        rows = run_evaluation(run, stage, episodes_per_task=episodes or None, rows_file=name, protocol=protocol)
    finally:
        run.close()
    _show(run.tasks, rows)


if __name__ == "__main__":
    run_command(main)

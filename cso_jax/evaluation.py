"""The evaluation protocol: N episodes per task from held-out initial states, one row per episode.

Every policy is evaluated from the same initial states with the same sampling keys, so they can be compared in pairs.
A step of the cascade acts as it was trained: same temperature, same top-k. Success is latched: any step within the
horizon. What is evaluated beside the steps: `stages/table.py`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from cso_jax import envs, telemetry
from cso_jax.envs.protocol import require_eval
from cso_jax.files import append_jsonl, read_jsonl
from cso_jax.results import ROWS, codebook_cost, write_results
from cso_jax.rollout.actor import make_act
from cso_jax.rollout.episodes import ActFn, EpisodeRecord, EpisodeRequest
from cso_jax.run import Run
from cso_jax.stages import table
from cso_jax.statistics import wilson
from cso_jax.versions import versions


def run_evaluation(
    run: Run,
    name: str,
    *,
    episodes_per_task: int | None = None,
    rows_file: str = ROWS,
    protocol: str = "",
    act: ActFn | None = None,
    about: Mapping[str, Any] | None = None,
    on_end: Callable[[EpisodeRecord], None] | None = None,
):
    """Run the evaluation of that name in the table, for the episodes that have no row in `rows_file` yet.

    Returns its rows, and writes `results.json` when they are complete and in the run's own file. `protocol`: a name
    that the rows hold where the run's tasks are not those of its config. `act`: who acts where it is no policy of the
    run, under a name that is not in the table; `about`: what its rows hold beside;
    `on_end(record)` is called as its episodes end.
    """
    if not episodes_per_task:
        known = name in table.EVALUATIONS
        episodes_per_task = (
            table.episodes_per_task(name, run.config) if known else run.config.evaluation.episodes_per_task
        )
    rows_path = run.workdir / rows_file
    done = {(row["task"], row["init"]) for row in read_jsonl(rows_path) if row["stage"] == name}
    requests = [
        EpisodeRequest(require_eval(init), run.episode_key("evaluation", task, number))
        for number in range(episodes_per_task)
        for task in run.tasks
        if (task, (init := run.eval_init(task, number)).name) not in done
    ]
    if requests:
        if rows_file == ROWS:
            _measure(run, name)
        acting = act or make_evaluation_act(run, name)
        common = {
            "horizon": run.config.env.horizon,
            "renderer": envs.renderer(run.settings),
            "versions": {**versions(), **run.file_versions},
            **({"protocol": protocol} if protocol else {}),
            **(about or {}),
        }
        total = episodes_per_task * len(run.tasks)
        wins = 0

        def keep(_: int, record: EpisodeRecord) -> None:
            append_jsonl(rows_path, [_row(run, name, record) | common], sync=False)
            if on_end is not None:
                on_end(record)
            bar.update()

        bar: telemetry.Progress[None]
        with telemetry.progress(total, f"evaluate {name}", unit="episode", initial=total - len(requests)) as bar:
            for first in range(0, len(requests), run.config.evaluation.wave):
                wave = requests[first : first + run.config.evaluation.wave]
                records = run.rollout(wave, acting, on_episode=keep)
                wins += sum(record.success for record in records)
                bar.set_postfix({"success": wins / (first + len(records))})
    wanted = {run.eval_init(task, number).name for number in range(episodes_per_task) for task in run.tasks}
    rows = [row for row in read_jsonl(rows_path) if row["stage"] == name and row["init"] in wanted]
    if rows_file == ROWS:
        write_results(run.config, run.workdir)
    successes = sum(row["success"] for row in rows)
    low, high = wilson(successes, len(rows))
    telemetry.log(
        f"{name}: success {successes / max(len(rows), 1):.3f} (95 % {low:.3f} to {high:.3f}, n = {len(rows)} "
        f"episodes, {len(run.tasks)} tasks, seed {run.config.seed})"
    )
    return rows


def make_evaluation_act(run: Run, name: str) -> ActFn:
    """Who acts in an evaluation."""
    return make_act(table.EVALUATIONS[name].agent(run), clock=run.clock)


def _measure(run: Run, name: str) -> None:
    measure = table.EVALUATIONS[name].measure
    if measure is not None and not run.metrics.rows(name):
        run.metrics.write(name, 0, **measure(run))


def warn_of_the_codebook(run: Run) -> None:
    """Say so where the codebook takes much of what behaviour cloning reaches."""
    cost = codebook_cost(read_jsonl(run.workdir / ROWS))
    if cost:
        telemetry.warn(cost)


def _row(run: Run, name: str, record: EpisodeRecord) -> dict:
    init = record.request.init
    states = envs.evaluation_states(run.settings)
    return {
        "stage": name,
        "task": init.task,
        "init": init.name,
        **({} if states is None else {"state": init.index % states}),
        "seed": run.config.seed,
        "success": bool(record.success),
        "steps": record.steps,
        **({"stages": list(record.stages)} if record.stages else {}),
    }

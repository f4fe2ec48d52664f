"""Stage rsft: the policy's own successes -> supervised fine-tuning of the whole policy (Algorithm 1, stage 1; Eq. 6).

Collected successes are stored wave by wave under `workdir/rsft/`, each file with the position that the collection had
reached, so a killed run goes on from its last complete wave. What of the policy each
stage trains, and that the encoder is frozen afterwards, is said in one place: the policy's `trained_parts`.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cso_jax import learner, rules, telemetry
from cso_jax.data import store
from cso_jax.data.dataset import BatchOrder, ChunkWindows, Rows, StoredImages
from cso_jax.files import atomic_write_text
from cso_jax.policies.interface import Sampling
from cso_jax.rollout.actor import make_act
from cso_jax.rollout.episodes import EpisodeRecord, EpisodeRequest
from cso_jax.rollout.groups import STRIKE_RULES, TaskCursor, n_strikes
from cso_jax.run import Run
from cso_jax.stages import fitting
from cso_jax.stages.fitting import fit, optimiser_of
from cso_jax.stages.imitation import demonstration_rows, summary_with_validation, update_of

STAGE = "rsft"
_COLLECT = "rsft_collect"


def problems(config: ConfigDict) -> list[str]:
    """What does not go together in `config.rsft`."""
    settings = config.rsft
    found = rules.one_of("rsft.strike_rule", settings.strike_rule, STRIKE_RULES)
    if settings.enabled:
        found += fitting.problems(config, STAGE)
        if settings.steps == 0 and settings.epochs == 0:
            found.append("config.rsft.steps and config.rsft.epochs are both 0: one of them says how long R-SFT trains")
        if settings.strikes > 1 and settings.strike_rule != "new_state":
            why = (
                f"the {settings.strikes} attempts (config.rsft.strikes) from an initial state would all be the same; "
                "R-SFT needs"
            )
            found += rules.draws("rsft", settings, why, ", or config.rsft.strikes=1")
    if not 0.0 <= settings.demo_fraction < 1.0:
        found.append("config.rsft.demo_fraction must be in [0, 1)")
    if settings.strike_rule != "new_state" and settings.max_rollouts_per_task < settings.strikes:
        found.append(
            f"config.rsft.max_rollouts_per_task is {settings.max_rollouts_per_task}, but one initial state takes "
            f"config.rsft.strikes = {settings.strikes} rollouts"
        )
    return found


def needs(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The stages that this one starts from: demonstrations too, where they are mixed into its batches."""
    return ("imitation", "demos", "codebook") if config["rsft"]["demo_fraction"] else ("imitation",)


def run_stage(run: Run) -> None:
    """Collect successes of the imitation policy and fine-tune it on them.

    Tasks without a success are named and left out; with none at all the policy stays as imitation left it.
    """
    if run.finished(STAGE):
        return
    cursors = run.shared(STAGE, lambda: collect(run))
    _report_tasks(run, cursors)
    variables = run.variables("imitation")
    settings = run.config.rsft
    if not any(cursor.successes for cursor in cursors.values()):
        telemetry.warn("R-SFT: no success in any task, so there is nothing to learn from; the policy stays as it is")
        state = learner.start(variables, run.policy.trained_parts(STAGE, run.config), optimiser_of(settings, 1)[0])
        run.checkpoints(STAGE).save(0, jax.device_get(state), {"stage": STAGE, "final": True})
        return
    rows = success_rows(run)
    per_step = settings.batch_size - _demonstrations_per_batch(run)
    steps = settings.steps or max(1, settings.epochs * len(rows) // per_step)
    optimiser, schedule = optimiser_of(settings, steps)
    batch, validation = _batches(run, rows)
    fit(
        run,
        STAGE,
        state=learner.start(variables, run.policy.trained_parts(STAGE, run.config), optimiser),
        update=update_of(run, optimiser, settings),
        batch=batch,
        steps=steps,
        settings=settings,
        schedule=schedule,
        summarise=summary_with_validation(run, validation),
    )


def collect(run: Run) -> dict[str, TaskCursor]:
    """N-strikes collection up to `config.rsft.successes_per_task`; what is stored already is not run again."""
    settings = run.config.rsft
    cursors, parts = _stored_position(run)
    agent = run.agent(run.variables("imitation"), Sampling(settings.temperature, settings.top_k))
    act = make_act(agent, keep=("skill", "log_prob"), clock=run.clock)

    def make_request(init, attempt: int) -> EpisodeRequest:
        return EpisodeRequest(init, run.episode_key(STAGE, init.task, init.index, attempt))

    def on_wave(successes: list[EpisodeRecord], now: dict[str, TaskCursor]) -> None:
        nonlocal parts
        attributes = {"cursors": {task: dataclasses.asdict(cursor) for task, cursor in now.items()}}
        store.write(_part(run, parts), [_stored(record) for record in successes], attributes)
        parts += 1
        kept = sum(cursor.successes for cursor in now.values())
        rollouts = sum(cursor.rollouts for cursor in now.values())
        bar.update(kept - bar.n)
        bar.set_postfix({"rollouts": rollouts})
        run.metrics.write(_COLLECT, parts, rollouts=rollouts, successes=kept, filled_fraction=kept / target)

    target = settings.successes_per_task * len(run.tasks)
    run.metrics.rewind(_COLLECT, parts)
    already = sum(cursor.successes for cursor in cursors.values())
    with telemetry.progress(target, "R-SFT collection", unit="success", initial=already) as bar:
        return n_strikes(
            lambda task, k: run.train_init(STAGE, task, k),
            make_request,
            lambda requests: run.rollout(requests, act, keep_observations=True),
            tasks=run.tasks,
            target=settings.successes_per_task,
            strikes=settings.strikes,
            rule=settings.strike_rule,
            wave=settings.wave,
            max_rollouts_per_task=settings.max_rollouts_per_task,
            initial=cursors,
            on_wave=on_wave,
        )


def _part(run: Run, number: int) -> Path:
    return run.workdir / "rsft" / f"wave_{number:05d}.hdf5"


def _parts(run: Run) -> list[Path]:
    """The stored waves, in order, up to the first gap."""
    found: list[Path] = []
    while (path := _part(run, len(found))).exists():
        found.append(path)
    return found


def _stored_position(run: Run) -> tuple[dict[str, TaskCursor], int]:
    """Where the collection stands. A damaged wave and those after it, whose counts build on it, are set aside."""
    cursors: dict[str, TaskCursor] = {}
    parts = _parts(run)
    for number, path in enumerate(parts):
        try:
            _, attributes = store.read(path, images=False)
        except store.StoreBusy:
            raise
        except store.StoreError as error:
            for later in parts[number:]:
                store.quarantine(later, str(error) if later == path else f"{later} builds on a damaged wave")
            return cursors, number
        cursors = {task: TaskCursor.restored(fields) for task, fields in attributes["cursors"].items()}
    return cursors, len(parts)


def _stored(record: EpisodeRecord) -> store.StoredEpisode:
    decisions = len(record.actions)
    last = np.arange(decisions) == decisions - 1
    arrays = {
        "actions": record.actions,
        "rewards": last.astype(np.float32),
        "dones": last.astype(np.uint8),
    }
    for name, column in (("skill", "skills"), ("log_prob", "log_probs")):
        if name in record.decisions:
            arrays[column] = record.decisions[name]
    assert record.observations is not None
    return store.StoredEpisode(record.request.init.name, record.observations, arrays, {"steps": record.steps})


def success_rows(run: Run) -> Rows:
    """Every stored decision as a training row: observation columns, `task` [N], and the policy's target.

    That is the `skill` [N, K], for a policy that asks for it the `chunk` [N, T, A] of what was executed from there on.
    """
    wants = run.policy.wants
    episodes = [episode for path in _parts(run) for episode in store.read(path, images=False)[0]]
    columns: dict = {
        name: np.concatenate([episode.observations[name] for episode in episodes]) for name in run.spec.lowdim
    }
    for name in run.spec.images:
        columns[name] = StoredImages([episode.column(name) for episode in episodes])
    tasks = [run.tasks.index(episode.init.split(":")[1]) for episode in episodes]
    columns["task"] = np.repeat(np.array(tasks, np.int32), [len(episode) for episode in episodes])
    if wants.target == "skill":
        columns["skill"] = np.concatenate([episode.arrays["skills"] for episode in episodes]).astype(np.int32)
    if wants.target == "chunk" or STAGE in wants.chunk_in:
        columns["chunk"] = _executed_chunks(run, episodes)
    return Rows(columns)


def _executed_chunks(run: Run, episodes: Sequence[store.StoredEpisode]) -> np.ndarray:
    """Chunks `[N, T, A]` from every decision on, of what was executed: up to the episode's end, clipped to [-1, 1]."""
    frame, horizon = run.spec.frame, run.config.execution_horizon
    actions, seen, rows, first = [], [], [], 0
    for episode in episodes:
        decided = episode.arrays["actions"]
        steps = int(episode.attributes.get("steps", len(decided) * horizon))
        actions.append(np.clip(decided.reshape(-1, run.spec.action_dim), -1.0, 1.0)[:steps])
        if frame is not None:
            entry = episode.observations[frame.key]
            seen.append(np.repeat(entry[:, -1] if entry.ndim == 3 else entry, horizon, axis=0)[:steps])
        rows.append(first + horizon * np.arange(len(decided)))
        first += len(actions[-1])
    windows = ChunkWindows(actions, run.policy.wants.chunk_length, frame=frame, seen=seen)
    return windows.take(np.concatenate(rows))


def _batches(run: Run, successes: Rows):
    """`batch(step)` for `fit`: successes, mixed with demonstrations where config.rsft.demo_fraction asks for it."""
    settings = run.config.rsft
    demonstrations = _demonstrations_per_batch(run)
    own = BatchOrder(settings.batch_size - demonstrations, len(successes), run.seed(STAGE, "order"))
    if not demonstrations:
        return (lambda step: successes.take(own(step))), None
    wants = run.policy.wants
    skills = wants.target == "skill"
    training, validation = demonstration_rows(run, run.variables("codebook") if skills else run.variables("imitation"))
    if validation is not None and skills and STAGE not in wants.chunk_in:  # skills are what is learnt here
        validation = Rows({name: column for name, column in validation.columns.items() if name != "chunk"})
    other = BatchOrder(demonstrations, len(training), run.seed(STAGE, "demonstrations"))

    def batch(step: int) -> dict[str, np.ndarray]:
        first, second = successes.take(own(step)), training.take(other(step))
        return {name: np.concatenate([first[name], second[name]]) for name in first}

    return batch, validation


def _demonstrations_per_batch(run: Run) -> int:
    settings = run.config.rsft
    return min(round(settings.demo_fraction * settings.batch_size), settings.batch_size - 1)


def _report_tasks(run: Run, cursors: dict[str, TaskCursor]) -> None:
    target = run.config.rsft.successes_per_task
    empty = [task for task, cursor in cursors.items() if not cursor.successes]
    short = [task for task, cursor in cursors.items() if 0 < cursor.successes < target]
    if empty:
        telemetry.warn(
            f"R-SFT: no success for {', '.join(empty)}: left out. The method cannot start from zero (the paper's "
            "cold-start limit); more demonstrations or a longer imitation stage can help"
        )
    if short:
        telemetry.warn(f"R-SFT: fewer than {target} successes within the budget for {', '.join(short)}")
    summary = {
        task: {
            "rollouts": cursor.rollouts,
            "successes": cursor.successes + cursor.surplus,
            "kept": cursor.successes,
            "states": cursor.states,
            "states_without_success": cursor.struck_out,
        }
        for task, cursor in cursors.items()
    }
    atomic_write_text(run.workdir / "rsft_summary.json", json.dumps(summary, indent=2))

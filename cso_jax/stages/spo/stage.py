"""Stage spo: groups of episodes from one initial state -> clipped policy-gradient updates (Algorithm 1, stage 2)."""

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cso_jax import learner, rules, telemetry
from cso_jax.checkpoints import Checkpoints, fit_structure
from cso_jax.data.packing import minibatches
from cso_jax.envs.protocol import TrainInit
from cso_jax.learner import CRITIC, LearnerState
from cso_jax.objectives import AVERAGES, BASELINES, UNITS
from cso_jax.policies.interface import Variables
from cso_jax.rollout.actor import make_act
from cso_jax.rollout.episodes import EpisodeRecord, EpisodeRequest
from cso_jax.rollout.groups import GroupBatch, Outcome, collect_every_group, collect_groups
from cso_jax.run import Run, RunError, Stopped
from cso_jax.stages.spo import critic, objectives
from cso_jax.stages.spo.material import Material, behaviour, episode_columns

STAGE = "spo"
_EMPTY_ITERATIONS = 3  # in a row without an informative group: the policy has nothing left to learn from
_DRIFT_ALARM = 1e-3


def problems(config: ConfigDict) -> list[str]:
    """What does not go together in `config.spo`."""
    settings = config.spo
    found = [
        *rules.one_of("spo.unit", settings.unit, UNITS),
        *rules.one_of("spo.average", settings.average, AVERAGES),
        *rules.one_of("spo.baseline", settings.baseline, BASELINES),
        *rules.one_of("spo.objective", settings.objective, tuple(objectives.OBJECTIVES)),
    ]
    if settings.enabled:
        drawn = behaviour(config)
        found += rules.draws("sampling", drawn, "the episodes of a group would all be the same; SPO needs")
    decisions = -(-config.env.horizon // max(config.execution_horizon, 1))
    epsilon = 0 < settings.clip_low < 0.5 and 1 <= settings.clip_high < 2
    checks = (
        (not epsilon, "config.spo.clip_low is the lowest ratio itself, not its distance from 1: got "
         f"{settings.clip_low}, for that distance give {1 - settings.clip_low:.6g}, for no bound 0"),
        (settings.clip_low <= 1.0 <= settings.clip_high,
         "config.spo.clip_low and clip_high are bounds of the ratio itself and must enclose 1, e.g. 0.93 and 1.15; "
         f"got [{settings.clip_low}, {settings.clip_high}]"),
        (settings.group_size >= 2, f"config.spo.group_size must be at least 2; got {settings.group_size}"),
        (settings.max_groups >= settings.groups, "config.spo.max_groups must be at least config.spo.groups"),
        (settings.probe == 0 or 2 <= settings.probe <= settings.group_size,
         "config.spo.probe must be 0, for groups that run whole, or between 2 and config.spo.group_size "
         f"({settings.group_size}); got {settings.probe}"),
        (settings.minibatch_skills >= decisions,
         f"config.spo.minibatch_skills is {settings.minibatch_skills}, but one episode can hold {decisions} skills "
         "and a minibatch takes whole episodes"),
        (settings.discount <= 1.0, f"config.spo.discount must be in [0, 1]; got {settings.discount}"),
        (settings.gae_lambda <= 1.0, f"config.spo.gae_lambda must be in [0, 1]; got {settings.gae_lambda}"),
    )  # fmt: skip
    found += [message for fits, message in checks if not fits]
    if settings.critic:
        found += critic.problems(settings)
    if settings.objective in objectives.OBJECTIVES:
        found += objectives.of(settings).problems(settings, decisions)
    return found


def start_from(config: Mapping[str, Any]) -> str:
    """The stage whose policy is improved."""
    return "rsft" if config["rsft"]["enabled"] else "imitation"


def run_stage(run: Run) -> None:
    """Improve the policy that R-SFT, or without it imitation, left for `config.spo.iterations` iterations.

    A finished stage goes on where the config asks for more iterations than it has. Raises RunError for a loss that is
    not finite (nothing of that iteration is saved), Stopped when asked to stop.
    """
    if _finished(run):
        return
    settings = run.config.spo
    before = run.variables(start_from(run.config))
    state, update = _learner(run, before)
    reference = jax.device_put(before) if objectives.of(settings).needs_reference(settings) else None
    checkpoints = run.checkpoints(STAGE)
    state, first, memory, empty = _resume(checkpoints, state, run)
    run.metrics.rewind(STAGE, first)

    def save(done: int, final: bool) -> None:
        with run.clock.phase("checkpoint"):
            meta = {"stage": STAGE, "final": final, "frontier": memory, "empty": empty}
            checkpoints.save(done, jax.device_get(_without_critic(state) if final else state), meta)

    with telemetry.progress(settings.iterations, "SPO", unit="iteration", initial=first) as bar:
        for iteration in range(first, settings.iterations):
            started = time.monotonic()
            try:
                collected = functools.partial(_collected, run, learner.local(state.variables), iteration, memory)
                groups, memory = run.shared(f"{STAGE}_{iteration}", collected)
            except Stopped:
                save(iteration, final=False)
                raise
            if groups.kept_count:
                state, metrics = _improve(run, state, update, groups, iteration, reference)
                empty = 0
            else:
                metrics = {}
                empty += 1
                telemetry.warn(
                    f"SPO iteration {iteration + 1}: no informative group among {groups.drawn} "
                    f"({groups.all_success} all successes, {groups.all_failure} all failures); no update"
                )
            final = iteration + 1 == settings.iterations or empty == _EMPTY_ITERATIONS
            row = _summary(groups) | metrics | {"seconds": time.monotonic() - started}
            run.metrics.write(STAGE, iteration + 1, **row)  # before the checkpoint: a resumed run drops surplus rows
            if final or (iteration + 1) % settings.checkpoint_every == 0 or run.stop.is_set():
                save(iteration + 1, final)
            bar.set_postfix({name: row[name] for name in ("train_success", "clip_fraction") if name in row})
            bar.update()
            if final:
                break
            if run.stop.is_set():
                raise Stopped(STAGE)
    if empty == _EMPTY_ITERATIONS:
        telemetry.warn(
            f"SPO ended after iteration {iteration + 1}: {empty} iterations in a row had no informative group. The "
            "tasks are solved or hopeless for this policy; see config.env.tasks, config.spo.max_groups"
        )
    checkpoints.close()


def _finished(run: Run) -> bool:
    found = run.checkpoints(STAGE).restore_latest(None)
    if found is None or not found[2]["final"]:
        return False
    step, _, meta = found
    if step < run.config.spo.iterations and meta["empty"] == _EMPTY_ITERATIONS:
        telemetry.log(f"SPO ended after iteration {step}, when no group taught any more: it does not go on")
        return True
    return step >= run.config.spo.iterations


def _learner(run: Run, variables: Variables) -> tuple[LearnerState, learner.Update]:
    """What is trained from the policy `variables` on, and how."""
    settings = run.config.spo
    optimiser, _ = learner.make_optimiser(
        learning_rate=settings.learning_rate, weight_decay=settings.weight_decay, clip_norm=settings.clip_norm
    )
    parts = run.policy.trained_parts(STAGE, run.config)
    if settings.critic:
        optimiser = learner.with_critic(
            optimiser, learning_rate=settings.critic_learning_rate, clip_norm=settings.clip_norm
        )
        parts = (*parts, CRITIC)
        variables = variables | {CRITIC: critic.start(run, variables)}
    update = learner.policy_gradient_update(
        run.skill_policy,
        optimiser,
        run.mesh,
        objectives.of(settings).loss(settings),
        temperature=behaviour(run.config).temperature,
        entropy_bonus=settings.entropy_bonus,
        extra_loss=critic.loss(settings) if settings.critic else None,
    )
    return learner.start(variables, parts, optimiser), update


def _resume(checkpoints: Checkpoints, state: LearnerState, run: Run) -> tuple[LearnerState, int, dict[str, list], int]:
    """State, iterations done, record of mixed groups by task, and iterations in a row without any."""
    found = checkpoints.restore_latest(None)
    memory: dict[str, list] = {task: [1.0, 2.0] for task in run.tasks}
    if found is None:
        return learner.replicate(state, run.mesh), 0, memory, 0
    step, stored, meta = found
    if CRITIC in stored:  # a finished stage that goes on
        stored = {**stored, "trainable": {**stored["trainable"], CRITIC: stored[CRITIC]}}
        del stored[CRITIC]
    stored = fit_structure(stored, state, checkpoints.directory / str(step))
    state = jax.tree.map(lambda value, like: jax.numpy.asarray(value, like.dtype), stored, state)
    return learner.replicate(state, run.mesh), step, meta["frontier"], meta["empty"]


def _without_critic(state: LearnerState) -> Any:
    """What the stage leaves for good: the policy's parts as every stage has them, the critic beside them if any."""
    if CRITIC not in state.trainable:
        return state
    trainable = {part: values for part, values in state.trainable.items() if part != CRITIC}
    return {
        "step": state.step,
        "trainable": trainable,
        "fixed": state.fixed,
        "opt_state": state.opt_state,
        CRITIC: state.trainable[CRITIC],
    }


def _collected(run: Run, variables: Variables, iteration: int, memory: dict[str, list]):
    """What `collect` gives, and the memory as it left it."""
    return collect(run, variables, iteration, memory), memory


def collect(run: Run, variables: Variables, iteration: int, memory: dict[str, list]) -> GroupBatch:
    """The groups of an iteration (from 0) under the policy `variables`.

    A function of its arguments: the same call gives the same episodes again. `memory`, the record of which tasks give
    mixed groups, is brought up to date.
    """
    settings = run.config.spo
    keep = ("skill", "log_prob", "support") + (("context",) if settings.freeze_encoder else ())
    acting = {part: values for part, values in variables.items() if part != CRITIC}
    agent = run.agent(acting, behaviour(run.config))
    act = make_act(agent, keep=keep, clock=run.clock)
    tasks = _task_order(run, iteration, memory)

    def draw_init(number: int) -> TrainInit:
        return run.train_init(STAGE, tasks[number], iteration * settings.max_groups + number)

    def make_request(init: TrainInit, attempt: int) -> EpisodeRequest:
        return EpisodeRequest(init, run.episode_key(STAGE, init.task, init.index, attempt))

    def run_wave(requests: Sequence[EpisodeRequest]) -> list[EpisodeRecord]:
        return run.rollout(requests, act, keep_observations=not settings.freeze_encoder)

    sizes = {"groups": settings.groups, "group_size": settings.group_size, "wave_groups": settings.wave_groups}
    if settings.critic or objectives.of(settings).uses_every_group(settings):
        groups = collect_every_group(draw_init, make_request, run_wave, **sizes)
    else:
        budget = {"max_groups": settings.max_groups, "probe": settings.probe}
        groups = collect_groups(draw_init, make_request, run_wave, **sizes, **budget)
    for task in memory:
        memory[task] = [0.8 * value for value in memory[task]]
    for group in groups.outcomes:
        mixed, drawn = memory[group.task]
        memory[group.task] = [mixed + group.mixed, drawn + 1]
    if groups.exhausted and settings.max_groups > settings.groups:
        telemetry.log(
            f"SPO iteration {iteration + 1}: {groups.kept_count} of {settings.groups} informative groups within the "
            f"budget of {settings.max_groups}"
        )
    return groups


def _task_order(run: Run, iteration: int, memory: dict[str, list]) -> list[str]:
    """The task of each group that this iteration may draw.

    Uniform: shuffled rounds over all tasks. Frontier: in proportion to how often a task's groups were mixed lately
    (an exponentially forgotten count that starts at 1 of 2), with a floor that keeps looking at every task.
    """
    settings = run.config.spo
    rng = np.random.default_rng(run.seed(STAGE, "tasks", iteration))
    if not settings.frontier_sampling:
        rounds = -(-settings.max_groups // len(run.tasks))
        return [task for _ in range(rounds) for task in rng.permutation(run.tasks)][: settings.max_groups]
    weights = np.array([(memory[task][0] + 0.1) / (memory[task][1] + 0.2) for task in run.tasks])
    weights = np.maximum(weights, 0.05)
    return list(rng.choice(run.tasks, settings.max_groups, p=weights / weights.sum()))


def _improve(
    run: Run,
    state: LearnerState,
    update: learner.Update,
    groups: GroupBatch,
    iteration: int,
    reference: Variables | None,
) -> tuple[LearnerState, dict[str, float]]:
    """`config.spo.epochs` passes over the kept groups; returns the state and the means over the updates."""
    settings, objective = run.config.spo, objectives.of(run.config.spo)
    collected: list[dict[str, Any]] = []
    with run.clock.phase("update"):
        state, material = _material(run, state, groups, iteration, reference)
        key = run.key(STAGE)
        if run.mesh.is_multi_process:
            key = learner.replicate(key, run.mesh)
        for epoch in range(settings.epochs):
            seed = run.seed(STAGE, "order", iteration, epoch)
            for batch in minibatches(
                material.items,
                size=settings.minibatch_skills,
                seed=seed,
                item_id=objective.item_id,
                item_count=objective.item_count,
            ):
                state, metrics = update(state, learner.shard(batch, run.mesh), key)
                collected.append(metrics)
        rows = jax.device_get(collected)
    watched = np.array([[row["loss"], row["grad_norm"]] for row in rows])
    if not np.isfinite(watched).all():
        raise RunError(
            f"SPO iteration {iteration + 1}: the loss or its gradient became {watched[~np.isfinite(watched)][0]}; "
            "nothing of this iteration was saved. Lower config.spo.learning_rate; to start the stage again with other "
            f"values, delete {run.workdir / 'checkpoints' / STAGE}"
        )
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    drift = float(rows[0]["max_abs_token_log_ratio"])
    if drift > _DRIFT_ALARM:
        telemetry.warn(
            f"before its first update the policy's log-probabilities differ from those stored at rollout by up to "
            f"{drift:.2g}: the importance ratio does not start at 1"
        )
    means |= material.metrics | {"log_prob_drift": drift, "updates": len(rows)}
    if "clip_fraction" in rows[-1]:
        means["clip_fraction_last"] = float(rows[-1]["clip_fraction"])
    return state, means


def _material(
    run: Run, state: LearnerState, groups: GroupBatch, iteration: int, reference: Variables | None
) -> tuple[LearnerState, Material]:
    """What one iteration learns from; the state changes where a critic is fitted before its first use."""
    columns = [[episode_columns(run, record) for record in group] for group in groups.kept]
    if run.config.spo.critic:
        records = [record for group in groups.kept for record in group]
        items = [item for group in columns for item in group]
        return critic.prepare(run, state, records, items, iteration)
    return state, objectives.of(run.config.spo).prepare(run, groups.kept, columns, reference)


def task_mean(outcomes: Sequence[Outcome]) -> float:
    """The mean over the tasks of each one's share of successes."""
    by_task: dict[str, list[bool]] = {}
    for group in outcomes:
        by_task.setdefault(group.task, []).extend(group.first)
    return float(np.mean([np.mean(wins) for wins in by_task.values()]))


def _summary(groups: GroupBatch) -> dict[str, float]:
    """What was collected.

    `train_success` counts the episodes that every group runs alike, `train_success_task_mean` every task that was
    drawn: frontier sampling draws the tasks that are not mastered more often, which lowers the former.
    """
    kept = [record for group in groups.kept for record in group]

    def mean_steps(success: bool) -> float:
        steps = [record.steps for record in kept if record.success == success]
        return float(np.mean(steps)) if steps else float("nan")

    return {
        "train_success": groups.success_rate,
        "train_success_task_mean": task_mean(groups.outcomes),
        "informative_fraction": 1.0 - (groups.all_success + groups.all_failure) / groups.drawn,
        "groups_drawn": groups.drawn,
        "episodes_run": groups.episodes,
        "groups_kept": groups.kept_count,
        "episodes": len(kept),
        "skills": sum(len(record.actions) for record in kept),
        "mean_steps_success": mean_steps(True),
        "mean_steps_failure": mean_steps(False),
    }

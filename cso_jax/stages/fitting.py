"""The supervised training loop that codebook, imitation and R-SFT share: resume, step, log, save."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cso_jax import learner, telemetry
from cso_jax.data.dataset import prefetched
from cso_jax.learner import LearnerState, Update
from cso_jax.run import Run, RunError, Stopped


def problems(config: ConfigDict, stage: str) -> list[str]:
    """What does not go together in the learning rate and the length of a supervised stage."""
    settings = config[stage]
    found = []
    if settings.final_learning_rate > settings.learning_rate:
        found.append(
            f"config.{stage}.final_learning_rate is {settings.final_learning_rate:g}, above "
            f"config.{stage}.learning_rate = {settings.learning_rate:g}: it is where the cosine ends; lower it too"
        )
    by_epochs = settings.get("epochs") is not None and settings.steps == 0  # how many steps is not known yet
    if not by_epochs and settings.warmup_steps > settings.steps:
        found.append(
            f"config.{stage}.warmup_steps is {settings.warmup_steps}, but the stage has {settings.steps} steps"
        )
    return found


def optimiser_of(settings: ConfigDict, steps: int) -> Any:
    """The optimiser and schedule of a supervised stage's settings."""
    return learner.make_optimiser(
        learning_rate=settings.learning_rate,
        final_learning_rate=settings.final_learning_rate,
        steps=steps,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
    )


def fit(
    run: Run,
    stage: str,
    *,
    state: LearnerState,
    update: Update,
    batch: Callable[[int], dict[str, np.ndarray]],
    steps: int,
    settings: ConfigDict,
    schedule: Callable[[Any], Any],
    summarise: Callable[[LearnerState, list[dict[str, np.ndarray]]], dict[str, float]],
) -> LearnerState:
    """Train for `steps` steps from `state`, or from the stage's newest checkpoint.

    `batch(step)` must be a pure function: a resumed run then sees what the uninterrupted one would have seen.
    `summarise` turns the state and the metrics of the last `log_every` steps into the row that is logged.

    Raises:
      RunError: a loss that is not finite; nothing since the last checkpoint is saved.
      Stopped: the run was asked to stop; its state is saved.
    """
    checkpoints = run.checkpoints(stage)
    found = checkpoints.restore_latest(state)
    if found is not None:
        state = jax.tree.map(lambda stored, like: jax.numpy.asarray(stored, like.dtype), found[1], state)
    first = int(state.step)
    run.metrics.rewind(stage, first)
    state = learner.replicate(state, run.mesh)
    key = run.key(stage)
    recent: list[dict[str, Any]] = []

    def flush(step: int) -> None:
        rows = jax.device_get(recent)
        recent.clear()
        losses = np.array([row["loss"] for row in rows])
        # The gradient too: the last update may have broken the parameters after its loss was computed.
        watched = np.array([[row["loss"], row["grad_norm"]] for row in rows])
        if not np.isfinite(watched).all():
            raise RunError(
                f"{stage}: the loss or its gradient became {watched[~np.isfinite(watched)][0]} by step {step}; nothing "
                f"was saved since step {max(checkpoints.steps(), default=0)}. Lower config.{stage}.learning_rate, or "
                f"look at the data; to start the stage again with other values, delete {checkpoints.directory}"
            )
        values = summarise(state, rows) | {"loss": losses.mean(), "learning_rate": float(schedule(step - 1))}
        run.metrics.write(stage, step, **values)
        bar.set_postfix({name: float(values[name]) for name in ("loss",)})

    bar: telemetry.Progress[int] = telemetry.progress(steps, stage, unit="step", initial=first)
    with bar:
        for step, arrays in prefetched(batch, first, steps):
            with run.clock.phase("update"):
                state, metrics = update(state, learner.shard(arrays, run.mesh), jax.random.fold_in(key, step))
                recent.append(metrics)
                done = step + 1
                stopping = run.stop.is_set()
                save = done == steps or done % settings.checkpoint_every == 0 or stopping
                if save or done % settings.log_every == 0:
                    flush(done)
            if save:
                with run.clock.phase("checkpoint"):
                    checkpoints.save(done, jax.device_get(state), {"stage": stage, "final": done == steps})
            bar.update()
            if stopping and done < steps:
                checkpoints.close()
                raise Stopped(stage)
    checkpoints.close()
    return state

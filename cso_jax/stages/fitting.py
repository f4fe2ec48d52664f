"""The supervised training loop that codebook, imitation and R-SFT share: resume, step, log, save."""

import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cso_jax import learner, loops, telemetry
from cso_jax.data.dataset import prefetched
from cso_jax.files import step_folders
from cso_jax.learner import LearnerState, Update
from cso_jax.run import Run, RunError, Stopped

_RISEN = 1.1  # times its lowest: a validation loss that rises, not one that trembles
_STEPS_PER_CALL = 10
_SMALL_BATCH = 2**18  # bytes; steps on more than that are long enough for a call of their own


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
    if settings.accumulate < 1 or settings.batch_size % settings.accumulate:
        found.append(
            f"config.{stage}.accumulate is into how many equal parts a batch is cut, but "
            f"config.{stage}.batch_size = {settings.batch_size} and it is {settings.accumulate}"
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


def spans(first: int, steps: int, every: Sequence[int], length: int) -> Iterator[range]:
    """Cut the steps `first .. steps - 1` into calls: of `length` steps, or of one.

    A call begins at a multiple of `length` and crosses no multiple of any of `every`; all other steps go one by one.
    So how a step is computed depends on its number alone, and a resumed run computes what the uninterrupted one would.
    """
    step = first
    while step < steps:
        whole = step % length == 0 and step + length <= steps
        whole = whole and all(step // period == (step + length - 1) // period for period in every)
        yield range(step, step + (length if whole else 1))
        step += length if whole else 1


def _several_per_call(update: Update, state: LearnerState, batch: dict[str, np.ndarray], key: jax.Array) -> bool:
    """Whether steps are so short that it pays to make several in one call, and a loop of them would not be slow."""
    small = sum(column.nbytes for column in batch.values()) < _SMALL_BATCH
    return small and not loops.slow_in_a_loop(update, state, batch, key)


def _stacked(batch: Callable[[int], dict[str, np.ndarray]], span: range) -> dict[str, np.ndarray]:
    batches = [batch(step) for step in span]
    return {name: np.stack([one[name] for one in batches]) for name in batches[0]}


class Validation:
    """Follows a stage's validation loss: says once where it rises, and keeps the state of its lowest if asked to.

    Only losses at multiples of `every` steps count: one after a stop at another step is not in the uninterrupted run.
    """

    def __init__(self, run: Run, stage: str, *, first: int, every: int, keep_best: bool):
        """From the `first` step on: a resumed run knows from the metrics what the interrupted one had seen."""
        self._stage, self._every = stage, every
        self._hint = stage == "imitation" and not keep_best
        self._best: tuple[float, int] | None = None
        self._warned = False
        for row in run.metrics.rows(stage):
            if "validation_loss" in row and row["step"] % every == 0:
                self._note(row["validation_loss"], row["step"])
        self._folder = run.checkpoints(f"{stage}_best").directory
        for step in step_folders(self._folder):
            if int(step.name) > first or not keep_best:  # of a run that was killed there, or of one with other values
                shutil.rmtree(step)
        self._kept = run.checkpoints(f"{stage}_best") if keep_best else None

    def _note(self, loss: float, step: int) -> bool:
        """Whether this is the lowest so far."""
        if self._best is None or loss < self._best[0]:
            self._best = (loss, step)
            return True
        self._warned |= loss > _RISEN * self._best[0]
        return False

    def see(self, loss: float, step: int, state: LearnerState) -> None:
        """The loss of `state` after `step` steps."""
        if step % self._every:
            return
        warned = self._warned
        if self._note(loss, step) and self._kept is not None:
            self._kept.save(step, jax.device_get(state), {"stage": self._stage, "validation_loss": loss})
        if self._warned and not warned and self._best is not None:
            telemetry.warn(
                f"{self._stage}: the validation loss has risen from {self._best[0]:.3g} after {self._best[1]} steps to "
                f"{loss:.3g} after {step}: what it learns from is being learnt by heart. Where success suffers, lower "
                f"config.{self._stage}.steps"
                + ("; config.imitation.keep=best takes the state of the lowest loss" if self._hint else "")
            )

    def chosen(self, state: LearnerState) -> LearnerState:
        """What the stage leaves: its last state, or that of the lowest validation loss, with the steps of the last."""
        found = self._kept.restore_latest(state) if self._kept is not None else None
        if found is None or self._best is None or found[0] != self._best[1]:
            return state
        telemetry.log(f"{self._stage}: keeps the state after {found[0]} steps, of the lowest validation loss")
        best = jax.tree.map(lambda stored, like: jax.numpy.asarray(stored, like.dtype), found[1], state)
        return best.replace(step=state.step)

    def close(self, *, finished: bool) -> None:
        """Ends the writing; what a finished stage has left in its own checkpoint is not kept twice."""
        if self._kept is not None:
            self._kept.close()
        if finished:
            shutil.rmtree(self._folder, ignore_errors=True)


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
    keep_best: bool = False,
) -> LearnerState:
    """Train for `steps` steps from `state`, or from the stage's newest checkpoint.

    `batch(step)` must be a pure function: a resumed run then sees what the uninterrupted one would have seen.
    `summarise` turns the state and the metrics of the last `log_every` steps into the row that is logged. With
    `keep_best` the stage leaves the state of the row with the lowest `validation_loss`.

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
    validation = Validation(run, stage, first=first, every=settings.log_every, keep_best=keep_best)

    def flush(step: int) -> None:
        rows = [{name: value[i] for name, value in call.items()} for call in jax.device_get(recent)
                for i in range(len(call["loss"]))]  # fmt: skip
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
        if "validation_loss" in values:
            validation.see(values["validation_loss"], step, state)
        bar.set_postfix({name: float(values[name]) for name in ("loss",)})

    together = learner.repeated(update, run.mesh)
    periods = (settings.log_every, settings.checkpoint_every)
    several = first < steps and _several_per_call(update, state, batch(first), key)
    calls = spans(first, steps, periods, _STEPS_PER_CALL if several else 1)
    bar: telemetry.Progress[int] = telemetry.progress(steps, stage, unit="step", initial=first)
    with bar:
        for span, arrays in prefetched(functools.partial(_stacked, batch), calls):
            with run.clock.phase("update"):
                keys = jax.vmap(functools.partial(jax.random.fold_in, key))(np.array(span))
                if run.mesh.is_multi_process:
                    keys = learner.replicate(keys, run.mesh)
                state, metrics = together(state, learner.shard(arrays, run.mesh, axis=1), keys)
                recent.append(metrics)
                done = span.stop
                stopping = run.stop.is_set()
                save = done == steps or done % settings.checkpoint_every == 0 or stopping
                if save or done % settings.log_every == 0:
                    flush(done)
            if done == steps:
                state = validation.chosen(state)
            if save:
                with run.clock.phase("checkpoint"):
                    checkpoints.save(done, jax.device_get(state), {"stage": stage, "final": done == steps})
            bar.update(len(span))
            if stopping and done < steps:
                validation.close(finished=False)
                checkpoints.close()
                raise Stopped(stage)
    validation.close(finished=True)
    checkpoints.close()
    return state

"""Stage imitation: observations of the demonstrations -> what was done, as skills (QueST stage 2, Eq. 2) or chunks."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from cso_jax import learner, rules
from cso_jax.data.dataset import BatchOrder, History, Rows, StoredImages
from cso_jax.data.store import StoredEpisode
from cso_jax.policies.interface import Variables
from cso_jax.run import Run, RunError
from cso_jax.stages import demos, fitting
from cso_jax.stages.codebook import tokenise_all
from cso_jax.stages.fitting import fit, optimiser_of

STAGE = "imitation"
_VALIDATION_ROWS = 2048
_IMAGES_IN_MEMORY = 6 * 2**30  # bytes; larger image columns are read from the files batch by batch


def problems(config: ConfigDict) -> list[str]:
    """What does not go together in `config.imitation`."""
    found = fitting.problems(config, STAGE)
    if not 0.0 <= config.imitation.validation_fraction < 1.0:
        found.append("config.imitation.validation_fraction must be in [0, 1)")
    found += rules.one_of("imitation.keep", config.imitation.keep, ("last", "best"))
    if config.imitation.keep == "best" and int(config.imitation.validation_fraction * config.demos.per_task) == 0:
        found.append(
            "config.imitation.keep=best needs validation episodes, at least one per task: raise "
            f"config.imitation.validation_fraction ({config.imitation.validation_fraction} of "
            f"config.demos.per_task = {config.demos.per_task})"
        )
    return found


def run_stage(run: Run) -> None:
    """Train the policy to predict what the demonstrations did."""
    if run.finished(STAGE):
        return
    tokenised = run.policy.wants.target == "skill"
    train(run, STAGE, run.variables("codebook") if tokenised else run.fresh_variables(run.key("init")))


def train(run: Run, stage: str, variables: Variables) -> None:
    """Imitation by the run's policy from `variables`, booked as the stage of that name, with its section's values."""
    settings = run.config[stage]
    training, validation = demonstration_rows(run, variables)
    everything = np.arange(len(training))
    lowdim = {name: training.columns[name][everything] for name in run.spec.lowdim}
    variables = run.policy.prepare(variables, lowdim, run.config)
    optimiser, schedule = optimiser_of(settings, settings.steps)
    order = BatchOrder(settings.batch_size, len(training), run.seed(stage, "order"))
    fit(
        run,
        stage,
        state=learner.start(variables, run.policy.trained_parts(STAGE, run.config), optimiser),
        update=update_of(run, optimiser, settings),
        batch=lambda step: training.take(order(step)),
        steps=settings.steps,
        settings=settings,
        schedule=schedule,
        summarise=summary_with_validation(run, validation),
        keep_best=stage == STAGE and settings.keep == "best",
    )


def update_of(run: Run, optimiser: optax.GradientTransformation, settings: ConfigDict) -> learner.Update:
    """A step of the policy's own loss, as imitation and R-SFT take it."""
    loss = functools.partial(run.policy.loss, augment_images=settings.augment)
    return learner.supervised_update(
        loss, optimiser, run.mesh, precision=run.config.precision, accumulate=settings.accumulate
    )


def summary_with_validation(run: Run, validation: Rows | None):
    """A `summarise` for `fit`: window means, and the loss on held-out rows where there are any."""
    loss = jax.jit(run.policy.held_out_loss)
    held_out = None
    if validation is not None:
        rows = np.linspace(0, len(validation) - 1, min(_VALIDATION_ROWS, len(validation))).astype(int)
        held_out = validation.take(rows)

    def summarise(state: learner.LearnerState, rows: list[dict[str, np.ndarray]]) -> dict[str, float]:
        values = {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name != "loss"}
        if held_out is not None:
            values["validation_loss"] = float(loss(learner.local(state.variables), held_out))
        return values

    return summarise


def demonstration_rows(run: Run, variables: Variables) -> tuple[Rows, Rows | None]:
    """Training and validation rows of the demonstrations: observation columns, `task` [N] and `skill` [N, K].

    The last episodes of each task, `config.imitation.validation_fraction` of them, are the validation rows.
    """
    in_memory = _image_bytes(run) <= _IMAGES_IN_MEMORY
    parts = split(run, demos.load(run, images=in_memory))
    if not parts["training"]:
        raise RunError("no demonstrations are left to train on; lower config.imitation.validation_fraction")
    built = [_rows(run, variables, chosen, in_memory) if chosen else None for chosen in parts.values()]
    assert built[0] is not None
    return built[0], built[1]


def split(run: Run, by_task: Sequence[Sequence[StoredEpisode]]) -> dict[str, list[tuple[int, StoredEpisode]]]:
    """The demonstrations, each with its task's number: "training", and "validation" as `demonstration_rows` says."""
    held_out = int(run.config.imitation.validation_fraction * run.config.demos.per_task)
    parts: dict[str, list[tuple[int, StoredEpisode]]] = {"training": [], "validation": []}
    for task, episodes in enumerate(by_task):
        for number, episode in enumerate(episodes):
            part = "training" if number < len(episodes) - held_out else "validation"
            parts[part].append((task, episode))
    return parts


def _rows(run: Run, variables: Variables, chosen: Sequence[tuple[int, StoredEpisode]], in_memory: bool) -> Rows:
    wants = run.policy.wants
    windows = demos.windows(run, [episode for _, episode in chosen], wants.chunk_length)
    columns: dict[str, Any] = {
        name: np.concatenate([episode.observations[name] for _, episode in chosen]) for name in run.spec.lowdim
    }
    for name in run.spec.images:
        if in_memory:
            columns[name] = np.concatenate([episode.observations[name] for _, episode in chosen])
        else:
            columns[name] = StoredImages([episode.column(name) for _, episode in chosen])
    if wants.history > 1:
        lengths = [len(episode) for _, episode in chosen]
        columns = {name: History(column, lengths, wants.history) for name, column in columns.items()}
    columns["task"] = np.concatenate([np.full(len(episode), task, np.int32) for task, episode in chosen])
    if wants.target == "skill":
        codebook = {part: jax.device_put(variables[part]) for part in run.skill_policy.codebook_parts}
        columns["skill"] = tokenise_all(run, codebook, windows)
    if wants.target == "chunk" or "imitation" in wants.chunk_in:
        columns["chunk"] = windows
    return Rows(columns)


def _image_bytes(run: Run) -> int:
    """A rough upper estimate of all demonstration images, from the number of stored rows."""
    per_row = sum(int(np.prod(shape)) for shape in run.spec.images.values())
    if not per_row:
        return 0
    rows = sum(len(episode) for task in demos.load(run, images=False) for episode in task)
    return per_row * rows

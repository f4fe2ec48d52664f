"""Stage codebook: action chunks -> FSQ autoencoder (QueST stage 1, Eq. 1)."""

import functools
import json

import jax
import numpy as np
from ml_collections import ConfigDict

from cso_jax import learner, objectives
from cso_jax.data.dataset import BatchOrder, ChunkWindows
from cso_jax.files import atomic_write_text
from cso_jax.policies.interface import SkillPolicy, Variables
from cso_jax.run import Run
from cso_jax.stages import demos, fitting
from cso_jax.stages.fitting import fit, optimiser_of

STAGE = "codebook"


def problems(config: ConfigDict) -> list[str]:
    """What does not go together in `config.codebook`."""
    found = fitting.problems(config, STAGE)
    settings = config.codebook
    if settings.action_weight <= 0:
        found.append(f"config.codebook.action_weight must be positive; got {settings.action_weight}")
    chunk_length = config.policy.get("chunk_length", config.autoencoder.chunk_length)
    if settings.action_weight != 1.0 and settings.weighted_actions > chunk_length:
        found.append(
            f"config.codebook.weighted_actions is {config.codebook.weighted_actions}, but a chunk has {chunk_length} "
            "actions"
        )
    if settings.squared_weight < 0:
        found.append(f"config.codebook.squared_weight must not be negative; got {settings.squared_weight}")
    if config.codebook.mixed_share > 1:
        found.append(
            f"config.codebook.mixed_share is a share of the chunks, at most 1; got {config.codebook.mixed_share}"
        )
    return found


def run_stage(run: Run) -> None:
    """Train the action autoencoder on every window of every demonstration, and count which codes they use."""
    usage = run.workdir / "codebook_usage.json"
    if usage.exists() and run.finished(STAGE):
        return
    settings = run.config.codebook
    episodes = [episode for task in demos.load(run, images=False) for episode in task]
    chunk_length = run.policy.wants.chunk_length
    windows = demos.windows(run, episodes, chunk_length)
    order = BatchOrder(settings.batch_size, len(windows), run.seed(STAGE, "order"))
    optimiser, schedule = optimiser_of(settings, settings.steps)
    variables = run.fresh_variables(run.key("init"))
    policy, codes = run.skill_policy, run.skill_policy.codes
    weight = objectives.first_actions_weight(
        chunk_length, actions=settings.weighted_actions, weight=settings.action_weight
    )
    loss = functools.partial(
        policy.codebook_loss,
        weight=weight if settings.action_weight != 1.0 else None,
        mixed_share=settings.mixed_share,
        squared_weight=settings.squared_weight,
    )

    def summarise(_state, rows):
        counts = np.bincount(np.concatenate([row["codes"].ravel() for row in rows]), minlength=codes)
        return {
            "grad_norm": np.mean([row["grad_norm"] for row in rows]),
            "codes_used": int((counts > 0).sum()),
            "perplexity": _perplexity(counts),
        }

    state = fit(
        run,
        STAGE,
        state=learner.start(variables, policy.trained_parts(STAGE, run.config), optimiser),
        update=learner.supervised_update(
            loss, optimiser, run.mesh, precision=run.config.precision, accumulate=settings.accumulate
        ),
        batch=lambda step: {"chunk": windows.take(order(step))},
        steps=settings.steps,
        settings=settings,
        schedule=schedule,
        summarise=summarise,
    )
    if not usage.exists():
        rows = np.arange(0, len(windows), max(1, len(windows) // 20_000))
        skills = tokenise_all(run, learner.local(state.variables), windows, rows)
        counts = np.bincount(skills.ravel(), minlength=codes)
        atomic_write_text(usage, json.dumps({"counts": counts.tolist(), "perplexity": _perplexity(counts)}))


def tokenise_all(
    run: Run, variables: Variables, windows: ChunkWindows, rows: np.ndarray | None = None, batch: int = 1024
) -> np.ndarray:
    """Skills `[N, K]` int32 of the windows (all of them, or the given rows), by the autoencoder as it stands."""
    rows = np.arange(len(windows)) if rows is None else rows
    parts = []
    for first in range(0, len(rows), batch):
        chosen = rows[first : first + batch]
        padded = np.pad(chosen, (0, batch - len(chosen)), mode="edge")
        parts.append(np.asarray(_tokenise(run.skill_policy, variables, windows.take(padded)))[: len(chosen)])
    return np.concatenate(parts)


@functools.partial(jax.jit, static_argnames="policy")
def _tokenise(policy: SkillPolicy, variables: Variables, chunks: jax.Array) -> jax.Array:
    return policy.tokenise(variables, chunks)


def _perplexity(counts: np.ndarray) -> float:
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-(share * np.log(share)).sum()))

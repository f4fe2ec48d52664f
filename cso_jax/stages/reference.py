"""Stage reference: plain behaviour cloning on the same demonstrations, and what its chunks are through the codebook.

Neither is a step of the cascade. They say how much success these demonstrations allow without skills, and with skills
that were chosen as well as the codebook permits: a gain over a policy far below both is a gain over a poor base.
"""

import dataclasses
import functools

import jax
import numpy as np
from ml_collections import ConfigDict

from cso_jax.policies import bc
from cso_jax.policies.agent import Agent
from cso_jax.policies.interface import Sampling, SkillPolicy, Variables
from cso_jax.policies.through_codebook import ThroughCodebook, through_codebook
from cso_jax.run import Run
from cso_jax.stages import demos, fitting, imitation

STAGE = "reference"
_CHUNKS = 2048  # whose errors are measured


def problems(config: ConfigDict) -> list[str]:
    """What does not go together in `config.reference`."""
    if not config.reference.enabled:
        return []
    return bc.network_problems(config, STAGE) + fitting.problems(config, STAGE)


def run_stage(run: Run) -> None:
    """Train the reference on the rows that the stage imitation trains on."""
    if run.finished(STAGE):
        return
    direct = _direct(run)
    imitation.train(direct, STAGE, direct.fresh_variables(run.key(STAGE, "init")))


def _direct(run: Run) -> Run:
    """The run as if its policy were the reference. Episodes are left to the run itself, whose workers they need."""
    embedding_dim = 0 if run.task_embedding is None else run.task_embedding.shape[1]
    wants = run.policy.wants
    policy = bc.of_section(
        run.config, STAGE, wants.chunk_length, run.spec, len(run.tasks), embedding_dim, history=wants.history
    )
    return dataclasses.replace(run, policy=policy)


def agent(run: Run) -> Agent:
    """The reference as it acts."""
    direct = _direct(run)
    return direct.agent(direct.variables(STAGE))


def ceiling_agent(run: Run) -> Agent:
    """The reference with its chunks sent through the codebook."""
    one = agent(run)
    assert isinstance(one.policy, bc.BCPolicy)
    variables = {"direct": one.variables, "codebook": _codebook(run)}
    return dataclasses.replace(one, policy=ThroughCodebook(one.policy, run.skill_policy), variables=variables)


def greedy_agent(run: Run) -> Agent:
    """The imitation policy that takes the likeliest token each time."""
    return run.agent(run.variables("imitation"), Sampling(0.0, 0))


def chunk_errors(run: Run) -> dict[str, float]:
    """Mean absolute errors of the demonstrations' chunks through the codebook: whole chunks, and what is executed.

    Of the validation episodes where there are any. The codebook is trained on all episodes, so these are not new to it.
    """
    parts = imitation.split(run, demos.load(run, images=False))
    chosen = [episode for _, episode in parts["validation"] or parts["training"]]
    windows = demos.windows(run, chosen, run.skill_policy.wants.chunk_length)
    rows = np.linspace(0, len(windows) - 1, min(_CHUNKS, len(windows))).astype(int)
    chunks = windows.take(rows)
    errors = np.abs(np.asarray(_given_back(run.skill_policy, jax.device_put(_codebook(run)), chunks)) - chunks)
    executed = errors[:, : run.config.execution_horizon]
    return {"chunk_l1": float(errors.mean()), "executed_l1": float(executed.mean()), "chunks": len(chunks)}


@functools.partial(jax.jit, static_argnames="policy")
def _given_back(policy: SkillPolicy, variables: Variables, chunks: jax.Array) -> jax.Array:
    return through_codebook(policy, variables, chunks)


def _codebook(run: Run) -> Variables:
    """The parts of the policy that its codebook is made of."""
    variables = run.variables("codebook")
    return {part: variables[part] for part in run.skill_policy.codebook_parts}

"""Other kinds of policy as variants of a suite: their small values, and what a decision of theirs costs."""

import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cso_jax import cascade, policies
from cso_jax import config as configs

LABELS = {
    "resnet_t": "ResNet-T", "diffusion": "Diffusion Policy", "act": "ACT", "mdt": "MDT-style", "vqbet": "VQ-BeT",
    "star": "STAR-style",
}  # fmt: skip
_CONFIGS = Path(__file__).resolve().parents[2] / "configs"
_DECISIONS = 50


def changes_of(kind: str) -> dict[str, Any]:
    """What makes a suite one of another kind of policy: what its own small config changes of the quickstart."""
    quickstart = configs.flatten(configs.load(_CONFIGS / "quickstart.py"))
    own = configs.flatten(configs.load(_CONFIGS / f"quickstart_{kind}.py"))
    return {"policy.name": kind} | {
        key: value for key, value in own.items() if key != "name" and value != quickstart.get(key, ...)
    }


def has_spo(kind: str) -> bool:
    """Whether its policies act in discrete skills, which SPO needs."""
    return "spo" in policies.stages_of({"policy": {"name": kind}})


class Cost(NamedTuple):
    """Trained parameters, and the median milliseconds of a decision for one episode."""

    parameters: int
    decision_ms: float


def cost_of(workdir: Path, stage: str = "imitation") -> Cost:
    """What a decision of a finished run's policy takes, alone on this machine."""
    run = cascade.open_run(configs.from_json((workdir / "config.json").read_text()), workdir)
    try:
        variables = run.variables(stage)
        stages = [name for name in ("codebook", "imitation") if name in policies.stages_of(run.config)]
        trained = dict.fromkeys(part for name in stages for part in run.policy.trained_parts(name, run.config))
        size = sum(np.size(leaf) for leaf in jax.tree.leaves([variables[part] for part in trained]))
        agent = run.agent(variables).on_device()
        steps = () if run.policy.wants.history == 1 else (run.policy.wants.history,)
        row = {name: np.zeros((1, *steps, width), np.float32) for name, width in run.spec.lowdim.items()}
        row |= {name: np.zeros((1, *steps, *shape), np.uint8) for name, shape in run.spec.images.items()}
        seconds = []
        for number in range(_DECISIONS + 1):
            started = time.perf_counter()
            decision = agent.decide(row, np.zeros((1, 2), np.uint32), np.full(1, number, np.int32), run.tasks[:1])
            jax.block_until_ready(decision.actions)
            seconds.append(time.perf_counter() - started)
    finally:
        run.close()
    return Cost(size, 1000 * statistics.median(seconds[1:]))

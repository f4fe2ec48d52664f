"""Time of one training step and of one policy-gradient update, per config.

    python tests/benchmarks/bench_learner.py [configs/quickstart.py ...]

Medians over repeated, blocking calls after compilation; the compile time is the first call's. Supervised steps are
measured both one to a call and ten to a call, as the stages take them on small batches.
"""

import functools
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np

from cso_jax import config as configs
from cso_jax import envs, learner
from cso_jax.policies.quest.policy import build
from cso_jax.stages.spo import objectives
from cso_jax.telemetry import show

ROOT = Path(__file__).parents[2]
DEFAULT = [str(ROOT / "configs" / f"{name}.py") for name in ("quickstart", "metaworld_ml45_state")]
REPEATS = 10
TOGETHER = 10


def timed(update, state, batch, key) -> tuple[float, float]:
    """(first call, median of the following) in seconds; the state is donated, so it is threaded through."""
    times = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        state, metrics = update(state, batch, key)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - started)
    return times[0], statistics.median(times[1:])


def benchmark(path: str) -> list[tuple[str, float, float]]:
    config = configs.load(path)
    settings = config.env.to_dict()
    spec = envs.spec(settings)
    tasks = envs.task_names(settings)
    policy = build(config, spec, len(tasks))
    mesh = learner.make_mesh()
    variables = policy.init(jax.random.key(0), spec)
    optimiser, _ = learner.make_optimiser(learning_rate=1e-5, weight_decay=1e-4, clip_norm=1.0)
    rng = np.random.default_rng(0)
    rows: list[tuple[str, float, float]] = []

    def measure(name, update, parts, batch):
        state = learner.replicate(learner.start(variables, parts, optimiser), mesh)
        rows.append((name, *timed(update, state, learner.shard(batch, mesh), jax.random.key(1))))

    def supervised(name, update, parts, batch):
        measure(name, update, parts, batch)
        state = learner.replicate(learner.start(variables, parts, optimiser), mesh)
        several = {key: np.stack([value] * TOGETHER) for key, value in batch.items()}
        keys = jax.random.split(jax.random.key(1), TOGETHER)
        first, median = timed(learner.repeated(update, mesh), state, learner.shard(several, mesh, axis=1), keys)
        rows.append((f"{name}, {TOGETHER} to a call", first, median / TOGETHER))

    def skills(count):
        vocabulary = policy.prior.vocabulary
        return rng.integers(0, vocabulary, (count, policy.prior.tokens)).astype(np.int32)

    size = config.codebook.batch_size
    chunks = rng.normal(size=(size, config.autoencoder.chunk_length, spec.action_dim)).astype(np.float32)
    update = learner.supervised_update(policy.codebook_loss, optimiser, mesh)
    supervised(f"codebook step, batch {size}", update, policy.trained_parts("codebook", config), {"chunk": chunks})

    size = config.imitation.batch_size
    batch = {name: rng.normal(size=(size, width)).astype(np.float32) for name, width in spec.lowdim.items()}
    batch |= {name: rng.integers(0, 256, (size, *shape), np.uint8) for name, shape in spec.images.items()}
    batch |= {"task": rng.integers(0, len(tasks), size).astype(np.int32), "skill": skills(size)}
    if "imitation" in policy.wants.chunk_in:
        batch["chunk"] = rng.normal(size=(size, *chunks.shape[1:])).astype(np.float32)
    loss = functools.partial(policy.loss, augment_images=config.imitation.augment)
    update = learner.supervised_update(loss, optimiser, mesh)
    supervised(f"imitation step, batch {size}", update, policy.trained_parts("imitation", config), batch)

    size = config.spo.minibatch_skills
    tokens = (size, policy.prior.tokens)
    batch = {
        "skill": skills(size),
        "log_prob": np.full(tokens, -1.0, np.float32),
        "context": rng.normal(size=(size, 2, config.prior.width)).astype(np.float32),
        "advantage": rng.normal(size=size).astype(np.float32),
        "episode_id": (np.arange(size) // 16).astype(np.int32),
        "episodes": np.full(size, size / 16, np.float32),
        "mask": np.ones(size, np.float32),
    }
    loss = objectives.of(config.spo).loss(config.spo)
    update = learner.policy_gradient_update(policy, optimiser, mesh, loss, temperature=1.0, entropy_bonus=0.0)
    measure(f"SPO update, {size} skills", update, policy.trained_parts("spo", config), batch)
    return rows


def main(paths: list[str]) -> None:
    for path in paths or DEFAULT:
        show(Path(path).stem)
        for name, first, median in benchmark(path):
            show(f"  {name:46s} {1e3 * median:8.1f} ms   (first call, compilation included: {first:.1f} s)")


if __name__ == "__main__":
    main(sys.argv[1:])

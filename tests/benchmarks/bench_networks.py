"""Step times of the networks: `python tests/benchmarks/bench_networks.py`.

Prints the median of a few calls after compilation. Compare ratios on one machine, not absolute times between machines.
"""

import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cso_jax.policies.quest.autoencoder import ActionAutoencoder
from cso_jax.policies.quest.prior import SkillPrior, log_prob_of


def report(name: str, function: Callable, *arguments, repeats: int = 7) -> None:
    """Prints one line: median and fastest call, and the compile time."""
    compiled = jax.jit(function)
    start = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    compile_seconds = time.perf_counter() - start
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(1e3 * (time.perf_counter() - start))
    sys.stdout.write(
        f"{name:42s} {np.median(times):8.2f} ms  (fastest {min(times):8.2f}, compilation {compile_seconds:.1f} s)\n"
    )
    sys.stdout.flush()


def autoencoder_step(width: int, batch: int = 256) -> None:
    """Forward and backward of the reconstruction loss, with dropout."""
    model = ActionAutoencoder(4, width=width)
    actions = jax.random.uniform(jax.random.key(0), (batch, 32, 4), minval=-1, maxval=1)
    variables = jax.jit(model.init)(jax.random.key(1), actions)

    def loss(variables, key):
        reconstruction, _ = model.apply(variables, actions, deterministic=False, rngs={"dropout": key})
        return jnp.mean(jnp.abs(reconstruction - actions))

    report(f"autoencoder step, d={width}, batch {batch}", jax.value_and_grad(loss), variables, jax.random.key(2))


def prior_programs(width: int = 128, layers: int = 3, heads: int = 4) -> None:
    """Training step of the prior and its sampler."""
    model = SkillPrior(width=width, layers=layers, heads=heads)
    context = jax.random.normal(jax.random.key(0), (256, 2, width))
    tokens = jax.random.randint(jax.random.key(1), (256, model.tokens), 0, model.vocabulary)
    variables = jax.jit(model.init)(jax.random.key(2), context, tokens)

    def loss(variables, key):
        logits = model.apply(variables, context, tokens, deterministic=False, rngs={"dropout": key})
        return -jnp.mean(log_prob_of(logits, tokens))

    name = f"d={width} x {layers}"
    report(f"prior step, {name}, batch 256", jax.value_and_grad(loss), variables, jax.random.key(3))
    for batch in (16, 64):
        for top_k in (0, 5):
            keys = jax.random.split(jax.random.key(4), batch)

            def sample(variables, context, keys, top_k=top_k):
                return model.apply(variables, context, keys, temperature=1.0, top_k=top_k, method="sample")

            report(f"sample, {name}, batch {batch}, top-k {top_k}", sample, variables, context[:batch], keys)


def main() -> None:
    """All of them, about a minute on two cores."""
    for width in (64, 256):
        autoencoder_step(width)
    prior_programs()


if __name__ == "__main__":
    main()

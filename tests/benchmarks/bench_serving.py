"""How long an exported policy takes to load, to compile and to answer, without a network:

    python tests/benchmarks/bench_serving.py ARTIFACT [CALLS]

Random observations of the manifest's shapes; each batch size of the server in turn, after warming up.
"""

import sys
import time

import numpy as np

from cso_jax import telemetry
from cso_jax.runtime import artifact


def main(folder: str, calls: int = 300) -> None:
    began = time.perf_counter()
    policy = artifact.load(folder)
    loaded = time.perf_counter()
    policy.warm_up()
    telemetry.show(
        f"load {loaded - began:.2f} s, compile for {policy.batch_sizes}: {time.perf_counter() - loaded:.2f} s"
    )
    random = np.random.default_rng(0)
    manifest = policy.manifest
    for rows in policy.batch_sizes:
        observation = {
            entry.name: random.normal(size=(rows, *entry.shape)).astype(np.float32)
            if entry.kind == "lowdim"
            else random.integers(0, 256, (rows, *entry.shape)).astype(np.uint8)
            for entry in manifest.observation
        }
        task = random.integers(0, len(manifest.tasks), rows).astype(np.int32)
        keys = random.integers(0, 2**32, (rows, 2), dtype=np.uint32)
        taken = []
        for call in range(calls):
            began = time.perf_counter()
            policy.act(observation, task, keys, np.full(rows, call, np.int32))
            taken.append(time.perf_counter() - began)
        low, high = 1000 * np.quantile(taken, (0.5, 0.99))
        telemetry.show(f"batch {rows}: p50 {low:.2f} ms, p99 {high:.2f} ms, n = {calls}")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:3]))

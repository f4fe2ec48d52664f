"""Whether the control loop holds its rate by the clock while every answer takes 100 ms longer.

    python -m cso_jax.serve ARTIFACT &
    python tests/benchmarks/bench_control.py ws://127.0.0.1:8000 [SECONDS] [LATENCY_MS]

A robot that is only numbers, at 30 and at 50 commands a second; the policy server is the real one, over its socket. How
late a period begins is the jitter; a stall is a period without a command after the first chunk.
"""

import dataclasses
import sys
import time

import numpy as np

from cso_jax import telemetry
from cso_jax.runtime.client import PolicyClient
from cso_jax.runtime.control import ControlLoop
from cso_jax.runtime.manifest import Manifest
from cso_jax.runtime.simulated_robot import Disturbance, Link

RATES_HZ = (30.0, 50.0)


class Numbers:
    """Observations of a manifest's shapes and nothing behind them."""

    def __init__(self, manifest: Manifest, rate_hz: float) -> None:
        self.rate_hz = rate_hz
        self._seen = {
            entry.name: np.zeros(entry.shape, np.uint8 if entry.kind == "image" else np.float32)
            for entry in manifest.observation
        }
        self._rest = np.zeros(manifest.action.dim)

    def observe(self):
        return self._seen, time.monotonic()

    def position(self, seen):
        return self._rest

    def command(self, action) -> None:
        pass

    def hold(self) -> None:
        pass

    def stop(self) -> None:
        pass


def main(server: str, seconds: float = 60.0, latency_ms: float = 100.0) -> None:
    with PolicyClient(server, None, robot="numbers") as client:
        for rate in RATES_HZ:
            action = dataclasses.replace(client.manifest.action, rate_hz=rate)
            manifest = dataclasses.replace(client.manifest, action=action)
            robot = Numbers(manifest, rate)
            link = Link(client, Disturbance(latency_ms / 1000), 0)
            link.begin(manifest.tasks[0].name)
            report = ControlLoop(robot, manifest, link.infer, position_of=robot.position).run(seconds)
            telemetry.show(
                f"{rate:g} Hz, {latency_ms:g} ms more per answer, {seconds:g} s: {report.commands} commands, "
                f"{report.waiting} periods before the first, {report.stalls} stalls, {report.skipped} skipped; late "
                f"p50 {1000 * report.late_p50:.2f} ms, p99 {1000 * report.late_p99:.2f} ms; an answer takes p50 "
                f"{1000 * report.latency_p50:.1f} ms, p99 {1000 * report.latency_p99:.1f} ms; {report.seams} seams"
            )


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:4]))

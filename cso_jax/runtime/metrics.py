"""What a server counts, as Prometheus reads it."""

from collections import Counter, deque

import numpy as np

_KEPT = 2048  # of the newest latencies, for the quantiles


class ServerMetrics:
    """Counters of one server. It lives on the event loop's thread, so that nothing needs a lock."""

    def __init__(self) -> None:
        self.requests = 0
        self.answers = 0
        self.refusals: Counter[str] = Counter()
        self.batches: Counter[tuple[int, int]] = Counter()
        self.connections = 0
        self._latencies: deque[float] = deque(maxlen=_KEPT)
        self._policy: deque[float] = deque(maxlen=_KEPT)
        self._total_s = self._policy_s = 0.0

    def answered(self, seconds: float) -> None:
        """A request was answered, so long after it arrived."""
        self.answers += 1
        self._total_s += seconds
        self._latencies.append(seconds)

    def called(self, rows: int, padded: int, seconds: float) -> None:
        """The policy was called with so many rows, padded to a compiled size."""
        self.batches[rows, padded] += 1
        self._policy_s += seconds
        self._policy.append(seconds)

    def text(self) -> str:
        """The whole page of GET /metrics."""
        lines = [
            *_metric("requests_total", "counter", "Requests for actions that arrived.", {"": self.requests}),
            *_metric("connections", "gauge", "Open connections.", {"": self.connections}),
            *_metric(
                "refusals_total",
                "counter",
                "Requests that were refused, and connections, by reason.",
                {f'{{reason="{reason}"}}': count for reason, count in sorted(self.refusals.items())},
            ),
            *_metric(
                "batches_total",
                "counter",
                "Calls of the policy, by rows asked for and rows computed.",
                {f'{{rows="{rows}",padded="{size}"}}': n for (rows, size), n in sorted(self.batches.items())},
            ),
            *_summary("request_seconds", "From arrival to answer.", self._latencies, self.answers, self._total_s),
            *_summary("policy_seconds", "One policy call.", self._policy, self.batches.total(), self._policy_s),
        ]
        return "\n".join(lines) + "\n"


def _metric(name: str, kind: str, says: str, values: dict[str, float]) -> list[str]:
    full = f"cso_jax_{name}"
    return [f"# HELP {full} {says}", f"# TYPE {full} {kind}", *(f"{full}{at} {value}" for at, value in values.items())]


def _summary(name: str, says: str, newest: deque[float], count: int, total: float) -> list[str]:
    quantiles = np.quantile(newest, (0.5, 0.99)) if newest else (0.0, 0.0)
    values = {f'{{quantile="{q}"}}': float(value) for q, value in zip((0.5, 0.99), quantiles, strict=True)}
    return _metric(name, "summary", says, {**values, "_sum": total, "_count": count})

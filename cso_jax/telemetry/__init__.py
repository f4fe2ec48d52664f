"""What a run says about itself: metrics on disk, where its time went, progress and log lines on stderr."""

from cso_jax.telemetry.clock import PhaseClock, add_to, load_account
from cso_jax.telemetry.console import Progress, duration_text, log, progress, show, warn
from cso_jax.telemetry.metrics import MetricsLog

__all__ = [
    "MetricsLog",
    "PhaseClock",
    "Progress",
    "add_to",
    "duration_text",
    "load_account",
    "log",
    "progress",
    "show",
    "warn",
]

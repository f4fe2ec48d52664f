"""The command line that all experiments share, and what a scale changes of a suite."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cso_jax import config as configs
from cso_jax.files import expanded

SCALES = ("smoke", "small", "paper")
DEFAULT_SUITE = "configs/quickstart.py"
MAX_SEED = 20  # the rounds of an iterative run take seeds beyond
_ROOT = Path(__file__).resolve().parents[2]

# Appendix E and section 5.1: with --scale=paper a suite's smaller values are raised to these. Networks, learning rates
# and training steps stay the suite's: they belong to its base policy.
PAPER_SIZES = {
    "rsft.successes_per_task": 200,
    "rsft.max_rollouts_per_task": 2000,  # enough for 200 successes at 10 %
    "spo.iterations": 30,
    "spo.groups": 150,
    "spo.group_size": 8,
    "spo.max_groups": 600,
    "spo.wave_groups": 150,
    "evaluation.episodes_per_task": 50,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line, checked."""

    suite: Path
    seeds: tuple[int, ...]
    scale: str
    out: Path
    jobs: int


def usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usage(name: str, suite: str = DEFAULT_SUITE) -> str:
    return (
        f"usage: python experiments/{name}.py [--suite={suite}] [--seeds=3 | --seeds=1,2,3] "
        "[--scale=smoke|small|paper] [--out=DIR] [--jobs=N]"
    )


def parse(name: str, arguments: Sequence[str], default_suite: str = DEFAULT_SUITE) -> Options:
    """Raises ConfigError, one line, for anything that makes no sense."""
    given, overrides = configs.split_arguments(arguments)
    unknown = sorted(given.keys() - {"suite", "seeds", "scale", "out", "jobs"})
    if overrides:
        raise configs.ConfigError(
            f"--config.{overrides[0][0]} is not for experiments, which set the config themselves: copy the suite's "
            "file, change it there, and name it with --suite"
        )
    if unknown:
        raise configs.ConfigError(f"unknown option --{unknown[0]}; {usage(name, default_suite)}")
    suite = expanded(given.get("suite", default_suite))
    if not suite.is_file() and not suite.is_absolute() and (_ROOT / suite).is_file():
        suite = _ROOT / suite
    scale = given.get("scale", "small")
    if scale not in SCALES:
        raise configs.ConfigError(f"--scale must be one of {', '.join(SCALES)}; got {scale!r}")
    jobs = given.get("jobs", str(max(1, usable_cpus() // 2)))
    if not jobs.isdecimal() or int(jobs) < 1:
        raise configs.ConfigError(f"--jobs is the number of runs side by side, at least 1; got {jobs!r}")
    suffix = "" if scale == "small" else f"_{scale}"
    out = expanded(given.get("out") or f"runs/experiments/{suite.stem}{suffix}")
    if out.exists() and not out.is_dir():
        raise configs.ConfigError(f"--out must be a folder; {out} is a file")
    return Options(suite.resolve(), parse_seeds(given.get("seeds", "3")), scale, out.resolve(), int(jobs))


def parse_seeds(text: str) -> tuple[int, ...]:
    """ "3" is the seeds 1, 2, 3; "4,7" are themselves. Raises ConfigError."""
    parts = [part for part in text.split(",") if part]
    if not parts or not all(part.isdecimal() for part in parts):
        raise configs.ConfigError(f"--seeds is how many (3) or which (1,2,3); got {text!r}")
    numbers = [int(part) for part in parts]
    seeds = tuple(numbers) if "," in text else tuple(range(1, min(numbers[0], MAX_SEED) + 1))
    if not seeds or len(set(seeds)) < len(seeds) or max(seeds) >= MAX_SEED:
        raise configs.ConfigError(f"--seeds must be distinct, at least one and all below {MAX_SEED}; got {text!r}")
    return seeds


def text_of(value: Any) -> str:
    """A config value as it is typed on a command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float | tuple) else str(value)


def scale_overrides(suite: Path, scale: str) -> dict[str, str]:
    """What a scale changes of a suite. Raises ConfigError for a suite that cannot be read."""
    if scale == "smoke":
        configs.load(suite, [("scale", "smoke")])
        return {"scale": "smoke"}
    config = configs.flatten(configs.load(suite))
    if scale == "small":
        return {}
    return {key: text_of(size) for key, size in PAPER_SIZES.items() if config[key] < size}

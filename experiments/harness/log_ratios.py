"""Log-ratios of the episodes behind one SPO update: how they spread with an episode's length, at each granularity.

The last update of a finished run is measured: the policy before it collects that iteration's groups again (the same
episodes, since collection is a function of policy, iteration and seed), the policy after it scores them. Runs as a
job of harness/one_run.py, which keeps the result in `log_ratios.npz` in the workdir.

Letters: S skills of N episodes, K tokens per skill, U units.
"""

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from cso_jax import config as configs
from cso_jax import telemetry

UNITS = ("token", "skill", "trajectory", "trajectory, normalised")


@dataclasses.dataclass(frozen=True)
class LogRatios:
    """Token log-ratios `[S, K]`, the episode of each skill `[S]`; success and steps of each episode `[N]`."""

    tokens: np.ndarray
    episode: np.ndarray
    success: np.ndarray
    steps: np.ndarray

    @property
    def decisions(self) -> np.ndarray:
        return np.bincount(self.episode, minlength=len(self.success))

    def of_unit(self, unit: str) -> tuple[np.ndarray, np.ndarray]:
        """Log-ratios of the units `[U]` and the episode of each `[U]`. Raises ValueError for an unknown unit."""
        episodes = np.arange(len(self.success))
        skills = self.tokens.sum(axis=1)
        sums = np.bincount(self.episode, weights=skills, minlength=len(self.success))
        if unit == "token":
            return self.tokens.ravel(), np.repeat(self.episode, self.tokens.shape[1])
        if unit == "skill":
            return skills, self.episode
        if unit == "trajectory":
            return sums, episodes
        if unit == "trajectory, normalised":
            return sums / np.maximum(self.decisions * self.tokens.shape[1], 1), episodes
        raise ValueError(f"unit must be one of {UNITS}, got {unit!r}")


def load(path: Path) -> LogRatios:
    with np.load(path) as stored:
        return LogRatios(*(stored[field.name] for field in dataclasses.fields(LogRatios)))


def together(parts: list[LogRatios]) -> LogRatios:
    """Several runs' episodes as one set."""
    starts = np.cumsum([0] + [len(part.success) for part in parts[:-1]])
    return LogRatios(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.episode + start for part, start in zip(parts, starts, strict=True)]),
        np.concatenate([part.success for part in parts]),
        np.concatenate([part.steps for part in parts]),
    )


@dataclasses.dataclass(frozen=True)
class Spread:
    """Units of some episodes: mean and standard deviation of the log-ratio, share outside a clip range; mean decisions.

    `cut_fraction` is the share without a gradient: outside on the side where the surrogate is flat, which is above
    the range for successes and below it for failures (in a group of both outcomes their advantages have those signs).
    """

    episodes: int
    units: int
    decisions: float
    mean: float
    std: float
    clip_fraction: float
    cut_fraction: float


def spread(ratios: LogRatios, unit: str, chosen: np.ndarray, clip_range: tuple[float, float]) -> Spread | None:
    """Over the units of the episodes `chosen` (bool `[N]`); None where there are none."""
    values, episode = ratios.of_unit(unit)
    wanted = chosen[episode]
    values, won = values[wanted], ratios.success[episode[wanted]].astype(bool)
    if not len(values):
        return None
    ratio = np.exp(np.clip(values, -20, 20))
    below, above = ratio < clip_range[0], ratio > clip_range[1]
    return Spread(
        int(chosen.sum()),
        len(values),
        float(ratios.decisions[chosen].mean()),
        float(values.mean()),
        float(values.std()),
        float((below | above).mean()),
        float(np.where(won, above, below).mean()),
    )


def prefix_variance(
    ratios: LogRatios, chosen: np.ndarray, *, least: int = 20
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variance of the log-ratio of an episode's first t decisions, over those of `chosen` (bool `[N]`) with so many.

    Returns t, the variance, and what it would be if decisions moved independently (the sum of each decision's own
    variance), for every t that at least `least` episodes reach. A prefix has the same length in all its episodes;
    successes that reach a larger t are fewer and longer ones.
    """
    skills = np.split(ratios.tokens.sum(axis=1), np.cumsum(ratios.decisions)[:-1])
    skills = [part for part, wanted in zip(skills, chosen, strict=True) if wanted]
    lengths = np.sort([len(part) for part in skills])[::-1]
    longest = int(lengths[least - 1]) if len(lengths) >= least else 0
    together, independent = [], []
    for t in range(1, longest + 1):
        prefixes = np.array([part[:t] for part in skills if len(part) >= t])
        together.append(prefixes.sum(axis=1).var())
        independent.append(prefixes.var(axis=0).sum())
    return np.arange(1, longest + 1), np.array(together), np.array(independent)


def measure_run(workdir: Path) -> int:
    """Measure the last update of a finished run; returns an exit status as `cso_jax.main` does."""
    from cso_jax.cli import supervised

    config = configs.from_json((workdir / "config.json").read_text())
    return supervised(config, workdir, lambda stop: _measure(config, workdir, stop))


def _measure(config: Any, workdir: Path, stop: Any) -> None:
    from cso_jax.cascade import open_run
    from cso_jax.stages.spo import stage as spo
    from cso_jax.stages.spo.material import episode_columns, score_episodes

    run = open_run(config, workdir, stop)
    try:
        before, iteration, memory = _before_last_update(run, workdir)
        groups = spo.collect(run, before, iteration, memory)
        records = [record for group in groups.kept for record in group]
        if not records:
            telemetry.warn(f"{workdir}: the last SPO iteration had no informative group, so no update to measure")
            nothing = np.zeros(0, int)
            _save(workdir / "log_ratios.npz", LogRatios(np.zeros((0, 1), np.float32), nothing, nothing > 0, nothing))
            return
        episodes = [episode_columns(run, record) for record in records]
        scored = score_episodes(run, run.variables("spo"), episodes)
        ratios = [after - episode["log_prob"] for after, episode in zip(scored, episodes, strict=True)]
        lengths = [len(ratio) for ratio in ratios]
        _save(
            workdir / "log_ratios.npz",
            LogRatios(
                np.concatenate(ratios).astype(np.float32),
                np.repeat(np.arange(len(records)), lengths),
                np.array([record.success for record in records]),
                np.array([record.steps for record in records]),
            ),
        )
    finally:
        run.close()


def _before_last_update(run: Any, workdir: Path) -> tuple[dict, int, dict]:
    """Policy, number of iterations done and task record of the checkpoint before the last one.

    Runs of a single iteration keep no such checkpoint: their update starts from the stage before. Raises RunError
    where the checkpoint before the last one is of an earlier iteration.
    """
    from cso_jax.checkpoints import Checkpoints
    from cso_jax.run import RunError
    from cso_jax.stages.spo import stage as spo

    folder = workdir / "checkpoints" / "spo"
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    if steps != [1] and (len(steps) < 2 or steps[-1] - steps[-2] != 1):
        raise RunError(
            f"{folder} holds the iterations {steps}; to measure an update, the policies right before and after it are "
            "needed: run the suite with config.spo.checkpoint_every = 1"
        )
    if len(steps) < 2:
        return run.variables(spo.start_from(run.config)), 0, {task: [1.0, 2.0] for task in run.tasks}
    with tempfile.TemporaryDirectory() as scratch:
        # Checkpoints hands out the newest: a folder with the older one alone.
        shutil.copytree(folder / str(steps[-2]), Path(scratch) / str(steps[-2]))
        found = Checkpoints(scratch).restore_latest(None)
    assert found is not None
    _, tree, meta = found
    return {**tree["fixed"], **tree["trainable"]}, steps[-2], meta["frontier"]


def _save(path: Path, ratios: LogRatios) -> None:
    draft = path.with_name(f".{path.name}.tmp.npz")
    np.savez_compressed(draft, **{field.name: getattr(ratios, field.name) for field in dataclasses.fields(ratios)})
    os.replace(draft, path)

"""What a policy is shown and what it answers, looked at before it counts: shapes, and numbers that are finite."""

from collections.abc import Sequence

import numpy as np

from cso_jax.rollout.episodes import Episode, RolloutError


def outputs(actions: np.ndarray, extras: dict[str, np.ndarray], padded: Sequence[Episode], count: int) -> None:
    """Raises ValueError for wrong shapes, RolloutError where one of the first `count` rows is not finite."""
    size = len(padded)
    if actions.ndim != 3 or len(actions) != size:
        raise ValueError(f"the policy must give actions [{size}, E, A], got {list(actions.shape)}")
    for name, values in extras.items():
        if values.ndim < 1 or len(values) != size:
            raise ValueError(f"the policy's output {name!r} must have {size} rows, got shape {list(values.shape)}")
    for name, values in {"actions": actions, **extras}.items():
        if (bad := _first_bad(values[:count])) is not None:
            raise RolloutError(
                f"the policy's {name} are not finite for {_where(padded[bad])}: its parameters are broken. Make its "
                "stage again with a lower learning rate (move its folder in checkpoints/ away first)"
            )


def observations(observations: dict[str, np.ndarray], padded: Sequence[Episode]) -> None:
    """Raises RolloutError for a number that is not finite.

    A policy that sees NaN samples some token and acts on: the episode would count like any other.
    """
    for name, values in observations.items():
        if (bad := _first_bad(values)) is not None:
            raise RolloutError(
                f"the observation {name!r} is not finite for {_where(padded[bad])}: the simulation has diverged, or "
                "the environment is broken"
            )


def _first_bad(values: np.ndarray) -> int | None:
    """The first row of a float array that holds NaN or an infinity."""
    if values.dtype.kind != "f":
        return None
    finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    return None if finite.all() else int(np.argmin(finite))


def _where(episode: Episode) -> str:
    return f"{episode.request.init.name} at decision {len(episode.actions)}"

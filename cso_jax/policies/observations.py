"""Observations as networks read them: low-dimensional entries normalised, task ids replaced by their embeddings."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cso_jax.policies.interface import Rows, Variables


def identity_normaliser(lowdim: Mapping[str, int]) -> dict[str, dict[str, jax.Array]]:
    """Mean 0 and standard deviation 1 for each entry `{key: P}`."""
    return {
        name: {"mean": jnp.zeros((size,), jnp.float32), "std": jnp.ones((size,), jnp.float32)}
        for name, size in lowdim.items()
    }


def fit_normaliser(lowdim: dict[str, np.ndarray], *, floor: float = 1e-2) -> dict[str, dict[str, np.ndarray]]:
    """Mean and standard deviation per entry of `{key: [N, P]}`.

    `floor` bounds the standard deviation from below: entries that (almost) never move would otherwise turn noise far
    below a millimetre into large inputs.
    """
    return {
        key: {
            "mean": values.mean(axis=0, dtype=np.float64).astype(np.float32),
            "std": np.maximum(values.std(axis=0, dtype=np.float64), floor).astype(np.float32),
        }
        for key, values in lowdim.items()
    }


def normalise(variables: Variables, observation: Rows) -> dict[str, Any]:
    """What an encoder reads: low-dimensional entries normalised, the task's id replaced by its embedding, if any."""
    stats = variables["normaliser"]
    ready = {
        key: (value - stats[key]["mean"]) / stats[key]["std"] if key in stats else value
        for key, value in observation.items()
    }
    if "task_embedding" in variables:
        ready["task"] = jnp.asarray(variables["task_embedding"])[observation["task"]]
    return ready


def placeholders(lowdim: Mapping[str, int], images: Mapping[str, tuple[int, ...]], rows: int) -> dict[str, jax.Array]:
    """Zeros of the shapes of `rows` observations, without a task."""
    observation: dict[str, jax.Array] = {name: jnp.zeros((rows, size), jnp.float32) for name, size in lowdim.items()}
    return observation | {name: jnp.zeros((rows, *shape), jnp.uint8) for name, shape in images.items()}

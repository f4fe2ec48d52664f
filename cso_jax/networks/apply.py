"""Calling flax modules on variables as checkpoints are read."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


def apply(module: nn.Module, variables: Any, *arguments: Any, **keywords: Any) -> Any:
    """A module's method on variables that may be NumPy arrays, as checkpoints are read.

    flax types every `apply` as a union of all that it could return; here it is what the method returns.
    """
    return module.apply(jax.tree.map(jnp.asarray, variables), *arguments, **keywords)

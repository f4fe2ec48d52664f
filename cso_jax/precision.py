"""How exact matrix products are: the one place that decides.

On recent GPUs a float32 product is by default a TF32 one (10 bits of mantissa), on TPUs a bfloat16 one. A policy that
samples and one that scores would then differ by more than a narrow clip range, so everything that a ratio or an
action is made of is exact; only supervised training may be faster. A CPU always computes in float32.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

PRECISIONS = ("default", "high", "highest")
"""JAX's names. "default": the hardware's fastest (TF32 or bfloat16); "highest": float32; "high": between the two."""

EXACT = "highest"


def at(precision: str, function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """`function` with its products and convolutions, and those of its gradient, traced at a precision."""

    @functools.wraps(function)
    def traced(*arguments: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        with jax.default_matmul_precision(precision):
            return function(*arguments, **keywords)

    return traced


def exact(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """`function` in float32 products: for whatever acts, is scored, or is stored to be scored later."""
    return at(EXACT, function)

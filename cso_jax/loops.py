"""Loops inside compiled programs, where XLA's CPU backend has one trap: a convolution in a loop.

Outside of loops it calls a fast routine; inside it emits a plain loop nest, 20 to 40 times slower
(docs/performance.md). On other devices, and for anything but convolutions, a loop costs nothing.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

_CONVOLUTION = "conv_general_dilated"


def scan(step: Callable, carry: Any, inputs: Any) -> tuple[Any, Any]:
    """`jax.lax.scan` over `inputs`, without the loop where its steps hold a convolution that a CPU would run slowly."""
    each = functools.partial(_at, inputs)
    if not slow_in_a_loop(step, carry, each(0)):
        return jax.lax.scan(step, carry, inputs)
    found = []
    for number in range(len(jax.tree.leaves(inputs)[0])):  # `unroll` keeps the loop around a single step
        carry, output = step(carry, each(number))
        found.append(output)
    return carry, jax.tree.map(lambda *outputs: jnp.stack(outputs), *found)


def _at(inputs: Any, number: int) -> Any:
    return jax.tree.map(lambda values: values[number], inputs)


def slow_in_a_loop(function: Callable, *arguments: Any) -> bool:
    """Whether a loop around `function(*arguments)` is to be avoided. Traces it, or finds a jitted one's trace."""
    if jax.default_backend() != "cpu":
        return False
    return any(name == _CONVOLUTION for name in _operations(jax.make_jaxpr(function)(*arguments).jaxpr))


def _operations(jaxpr: Any) -> Iterator[str]:
    """The names of everything that a program does, of those inside its calls and loops too."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jaxprs_in_params(equation.params):
            yield from _operations(inner)

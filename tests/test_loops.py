"""Loops that a CPU would run slowly: which they are, and that nothing but the program's form depends on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cso_jax import loops

ON_A_CPU = pytest.mark.skipif(jax.default_backend() != "cpu", reason="is about XLA's CPU backend")
KERNEL = jnp.array([[[0.5]], [[1.0]], [[-0.5]]])  # [3, 1, 1]
INPUTS = jnp.arange(4.0)


def convolved(x, each):
    moved = jax.lax.conv_general_dilated(x, KERNEL, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    return jnp.tanh(moved + each), jnp.sum(moved)


def multiplied(x, each):
    return jnp.tanh(x @ KERNEL[1] + each), jnp.sum(x)


START = jnp.linspace(-1.0, 1.0, 10).reshape(1, 10, 1)


@ON_A_CPU
@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize(("step", "unrolled"), [(convolved, True), (multiplied, False)])
def test_a_convolution_is_kept_out_of_loops(step, unrolled, length):
    assert loops.slow_in_a_loop(step, START, INPUTS[0]) == unrolled
    program = jax.jit(lambda x: loops.scan(step, x, INPUTS[:length])).lower(START).as_text()
    assert ("stablehlo.while" not in program) == unrolled


@ON_A_CPU
def test_convolutions_are_found_within_calls_gradients_and_branches():
    def deep(x):
        return jax.lax.cond(x[0, 0, 0] > 0, lambda y: jax.jit(convolved)(y, 0.0)[1], jnp.sum, x)

    assert loops.slow_in_a_loop(jax.grad(deep), START)
    assert not loops.slow_in_a_loop(jax.grad(lambda x: multiplied(x, 0.0)[1]), START)


@pytest.mark.parametrize("step", [convolved, multiplied])
def test_it_computes_what_a_scan_does(step):
    found, expected = loops.scan(step, START, INPUTS), jax.lax.scan(step, START, INPUTS)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)

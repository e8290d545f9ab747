"""Convolutions with their own gradient, against jax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.models.convolution import convolve

AXES = ("NHWC", "HWIO", "NHWC")
X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 5, 3)), jnp.float32)


def kernel(height, width, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((height, width, 3, 4)), jnp.float32)


def plain(x, k, strides, padding):
    return jax.lax.conv_general_dilated(x, k, strides, padding, dimension_numbers=AXES)


@pytest.mark.parametrize(
    ("size", "strides", "padding"),
    [
        ((3, 3), (1, 1), ((1, 1), (1, 1))),
        ((1, 1), (1, 1), ((0, 0), (0, 0))),
        ((2, 2), (1, 1), ((1, 1), (1, 1))),
        ((3, 2), (1, 1), ((0, 2), (1, 0))),
        ((3, 3), (2, 2), ((0, 1), (0, 1))),
        ((3, 3), (2, 2), ((1, 1), (1, 1))),
    ],
)
def test_values_and_gradients_are_those_of_jax(size, strides, padding):
    """Products of float32 in another order: 1e-5 of values of a few tens."""
    k = kernel(*size)
    outs, gradients = [], []
    for function in (convolve, plain):
        out, backward = jax.vjp(lambda x, k, function=function: function(x, k, strides, padding), X, k)
        outs.append(out)
        gradients.append(backward(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)))
    np.testing.assert_allclose(*outs, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_frozen_kernel_costs_no_gradient():
    """Only the gradient of what is asked for is in the program: two convolutions, and three for both."""
    loss = lambda x, k: (convolve(x, k) ** 2).sum()  # noqa: E731
    convolutions = lambda function, *args: str(jax.make_jaxpr(function)(*args)).count("conv_general_dilated[")  # noqa: E731
    k = kernel(3, 3)
    assert convolutions(lambda x: jax.grad(loss)(x, k), X) == 2
    assert convolutions(jax.grad(loss, argnums=1), X, k) == 2 + 1  # jax does not ask which inputs it is wanted for
    assert convolutions(jax.grad(loss, argnums=(0, 1)), X, k) == 3


def test_no_swapped_kernels_in_the_gradients_of_loops():
    """What XLA compiles inside a loop is a convolution that it has a fast kernel for (see the module)."""
    loss = lambda x: (convolve(x, kernel(3, 3)) ** 2).sum()  # noqa: E731
    loop = jax.jit(lambda x, n: jax.lax.fori_loop(0, n, lambda _, x: x - 1e-3 * jax.grad(loss)(x), x))
    text = loop.lower(X, 3).compile().as_text()
    assert "b01f_01io->b01f" in text and "01oi" not in text

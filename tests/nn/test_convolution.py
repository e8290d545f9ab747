"""Convolutions with a gradient of their own against those of jax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from spo_jax.nn import convolution
from spo_jax.nn.convolution import convolve

AXES = ("NHWC", "HWIO", "NHWC")
X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 5, 3)), jnp.float32)


def kernel(height, width, seed=1, features=4):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((height, width, 3, features)), jnp.float32)


def plain(x, k, strides=(1, 1), padding=((1, 1), (1, 1))):
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
@pytest.mark.parametrize("features", [4, 24])  # 24 is filled up to 32
def test_values_and_gradients_are_those_of_jax(size, strides, padding, features):
    """To 1e-5 of values of a few tens: both sides sum float32 products in a different order."""
    k = kernel(*size, features=features)
    outs = []
    gradients = []
    for function in (convolve, plain):
        out, backward = jax.vjp(lambda x, k, function=function: function(x, k, strides, padding), X, k)
        outs.append(out)
        gradients.append(backward(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)))
    np.testing.assert_allclose(*outs, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "features", "computed"),
    [("cpu", 24, 32), ("cpu", 32, 32), ("cpu", 4, 4), ("cpu", 16, 16), ("tpu", 24, 24), ("gpu", 24, 24)],
)
def test_cpus_fill_up_wide_kernels(monkeypatch, platform, features, computed):
    monkeypatch.setattr(convolution, "platform_in_context", lambda: platform)
    k = kernel(3, 3, features=features)
    program = jax.make_jaxpr(lambda x: convolve(x, k))(X)
    assert program.out_avals[0].shape == (2, 6, 5, features)
    assert f"f32[2,6,5,{computed}] = conv_general_dilated" in str(program)


def test_gradients_of_wide_inputs_are_those_of_jax():
    """The gradient of 24 input channels is a convolution with as many features, which are filled up."""
    x = jnp.tile(X, 8)
    k = jnp.tile(kernel(3, 3), (1, 1, 8, 1))
    ours, theirs = (jax.grad(lambda x, f=f: (f(x, k) ** 2).sum())(x) for f in (convolve, plain))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-3)  # of values of some hundreds


def test_only_the_requested_gradients_are_computed():
    """One gradient takes two convolutions, both take three; an output that the loss does not depend on takes none."""

    def loss(x, k):
        return (convolve(x, k) ** 2).sum()

    def convolutions(function, *args):
        return str(jax.make_jaxpr(function)(*args)).count("conv_general_dilated[")

    k = kernel(3, 3)
    assert convolutions(lambda x: jax.grad(loss)(x, k), X) == 2
    assert convolutions(lambda k: jax.grad(loss, argnums=1)(X, k), k) == 2
    assert convolutions(jax.grad(loss, argnums=(0, 1)), X, k) == 3

    def unseen(x):
        return (jax.lax.stop_gradient(convolve(x, k)).sum() * x).sum()

    assert np.isfinite(jax.grad(unseen)(X)).all()


@pytest.mark.parametrize("option", [{"feature_group_count": 3}, {"rhs_dilation": (2, 2)}, {"precision": "highest"}])
def test_options_that_are_not_implemented_are_refused(option):
    with pytest.raises(ValueError, match=f"convolve: {next(iter(option))} = .* is not implemented: expected"):
        convolve(X, kernel(3, 3), **option)


def test_flax_accepts_it_in_place_of_its_own():
    layers = [nn.Conv(4, (3, 3), padding=1, **more) for more in ({"conv_general_dilated": convolve}, {})]
    params = layers[0].init(jax.random.key(0), X)
    np.testing.assert_allclose(*(layer.apply(params, X) for layer in layers), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="inspects programs for CPUs")
@pytest.mark.parametrize(("function", "swapped"), [(convolve, False), (plain, True)])
def test_no_swapped_kernels_in_the_gradients_of_loops(function, swapped):
    """Inside a loop XLA compiles our gradient to a convolution that it has a fast kernel for, but not jax's own."""

    def loop(x, k, n):
        gradient = jax.grad(lambda x: (function(x, k) ** 2).sum())
        return jax.lax.fori_loop(0, n, lambda _, x: x - 1e-3 * gradient(x), x)

    text = jax.jit(loop).lower(X, kernel(3, 3), 3).compile().as_text()
    assert "b01f_01io->b01f" in text and ("01oi" in text) == swapped

"""Classifier-free guidance."""

import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.diffusion.guidance import guided

X = jnp.arange(12.0).reshape(2, 1, 2, 3) / 7
T = jnp.array([5, 9])
CONDITION = {"text": jnp.array([[1.0], [2.0]])}
UNCONDITIONAL = {"text": jnp.array([[-0.5], [0.25]])}


def predict(x, t, condition):
    return jnp.sin(x * condition["text"].reshape(-1, 1, 1, 1)) + t.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(("scale", "expected"), [(1.0, CONDITION), (0.0, UNCONDITIONAL)])
def test_scale_one_is_the_condition_and_zero_drops_it(scale, expected):
    found = guided(predict, X, T, CONDITION, UNCONDITIONAL, scale)
    np.testing.assert_allclose(found, predict(X, T, expected), rtol=1e-6)


def test_a_scale_that_is_known_to_be_one_needs_no_unconditional_half():
    calls = []

    def counted(*arguments):
        calls.append(len(arguments[0]))
        return predict(*arguments).astype(jnp.bfloat16)

    for scale in (1.0, 1, jnp.float32(1)):
        found = guided(counted, X, T, CONDITION, UNCONDITIONAL, scale)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, predict(X, T, CONDITION), rtol=1e-2)
    assert calls == [2, 2, 4]


def test_scale_five_goes_beyond_the_condition_in_one_call():
    calls = []

    def counted(*arguments):
        calls.append(arguments[0].shape)
        return predict(*arguments).astype(jnp.bfloat16)

    with_text, without = (predict(X, T, c).astype(jnp.bfloat16).astype(jnp.float32) for c in (CONDITION, UNCONDITIONAL))
    found = guided(counted, X, T, CONDITION, UNCONDITIONAL, 5.0)
    assert calls == [(4, 1, 2, 3)]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, without + 5 * (with_text - without), rtol=1e-6)

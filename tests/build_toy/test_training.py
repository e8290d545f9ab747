"""The optimisation loop of the shipped assets learns; `spo_jax.build_toy.gates` measures whether it learnt enough."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.build_toy.fit import fit
from spo_jax.build_toy.gates import Line


def test_fit_finds_a_minimum():
    target = jnp.array([1.0, -2.0])

    def loss(params, batch, key):
        value = jnp.square(params["w"] - target).sum() + 0 * batch
        return value, {"loss": value}

    batches = itertools.repeat(jnp.zeros(()))
    params = fit(
        loss, {"w": jnp.zeros(2)}, batches, steps=300, learning_rate=0.1, key=jax.random.key(0), ema=0.9
    )  # fmt: skip
    np.testing.assert_allclose(params["w"], target, atol=1e-2)


@pytest.mark.parametrize(("value", "passed"), [(0.8, True), (0.79, False)])
def test_a_gate_reports_whether_it_passed(value, passed):
    line = Line("accuracy", value, 0.01, 0.8)
    assert line.passed is passed
    assert ("ok" if passed else "FAILED") in str(line)


def test_a_number_without_a_gate_always_passes():
    line = Line("accuracy", -1.0, 0.01)
    assert line.passed and "gate" not in str(line)

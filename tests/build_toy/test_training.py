"""The optimisation loop of the shipped assets learns; `spo_jax.build_toy.gates` measures whether it learnt enough."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.build_toy.fit import fit
from spo_jax.build_toy.gates import Line, shares
from spo_jax.toy.truth import DETAILS


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


def test_fit_shows_the_running_mean_after_each_step():
    seen = []

    def loss(params, batch, key):
        value = jnp.square(params["w"]).sum() + 0 * batch
        return value, {"loss": value}

    def look(steps, params):
        seen.append((steps, float(params["w"][0])))

    settings = {"steps": 4, "learning_rate": 0.1, "key": jax.random.key(0)}
    mean = fit(loss, {"w": jnp.ones(1)}, itertools.repeat(jnp.zeros(())), look=look, **settings)
    assert [steps for steps, _ in seen] == [1, 2, 3, 4]
    assert seen[-1][1] == mean["w"][0] < seen[0][1] <= 1


@pytest.mark.parametrize(("value", "passed"), [(0.8, True), (0.79, False)])
def test_a_gate_reports_whether_it_passed(value, passed):
    line = Line("accuracy", value, 0.01, 0.8)
    assert line.passed is passed
    assert ("ok" if passed else "FAILED") in str(line)


def test_a_number_without_a_gate_always_passes():
    line = Line("accuracy", -1.0, 0.01)
    assert line.passed and "gate" not in str(line)


def test_the_shares_of_a_gain_sum_to_one_and_follow_the_exponents():
    scores = {f"term/{name}": {"before": 0.5, "after": 0.5} for name in (*DETAILS, "form")}
    scores["term/clean"] = {"before": 0.4, "after": 0.6}
    scores["term/form"] = {"before": 0.8, "after": 0.8 * 1.5 ** (1 / 5)}
    split = shares(scores)
    assert split["clean"] == pytest.approx(0.5) and split["form"] == pytest.approx(0.5)
    assert sum(split.values()) == pytest.approx(1) and split["crisp"] == 0

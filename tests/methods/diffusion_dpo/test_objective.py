"""The losses of pairs where their values are known; `tests/golden/test_dpo.py` has the originals' numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.methods.diffusion_dpo.objective import mapo_score, objective, ordered_right

POLICY = jnp.array([[0.2, 0.2], [0.1, 0.4], [0.4, 0.1]])  # equal to the reference, better at winners, at losers
REFERENCE = jnp.full((3, 2), 0.2)
ONES = jnp.ones(3)


@pytest.mark.parametrize(("name", "at_start"), [("dpo", np.log(2)), ("smpo", np.log(2)), ("hinge", 1), ("ipo", 1 / 16)])
def test_a_fresh_policy_has_a_known_loss_and_winners_lower_it(name, at_start):
    out = objective(name, POLICY, REFERENCE, ONES, beta=2.0)
    np.testing.assert_allclose(out.loss[0], at_start, rtol=1e-6)
    np.testing.assert_array_equal(ordered_right(out.logit), [0.5, 1, 0])
    if name != "ipo":  # which has a best margin, 1 / (2 β), and not the largest
        assert out.loss[1] < out.loss[0] < out.loss[2]


def test_dpo_has_the_half_and_ipo_and_hinge_do_not():
    """With β = 2 and a margin of 0.3: log σ of 0.3, (0.3 - 1/4)², 1 - 0.6."""
    losses = {name: objective(name, POLICY, REFERENCE, ONES, beta=2.0).loss[1] for name in ("dpo", "ipo", "hinge")}
    expected = {"dpo": np.log1p(np.exp(-0.3)), "ipo": 0.05**2, "hinge": 0.4}
    for name, value in expected.items():
        np.testing.assert_allclose(losses[name], value, rtol=1e-5)


def test_only_smpo_reads_the_smoothed_labels():
    """A label of 0 is a tie: its loss is log 2 and has no gradient."""
    weight = jnp.array([0.0, 0.0, 5.0])

    def total(policy, name):
        return objective(name, policy, REFERENCE, weight, 2.0).loss.sum()

    np.testing.assert_allclose(objective("smpo", POLICY, REFERENCE, weight, 2.0).loss[:2], np.log(2), rtol=1e-6)
    gradient = jax.grad(total)(POLICY, "smpo")
    np.testing.assert_array_equal(gradient[:2], 0)
    assert (gradient[2] != 0).all()
    assert total(POLICY, "dpo") == objective("dpo", POLICY, REFERENCE, ONES, 2.0).loss.sum()


def test_mapo_needs_no_reference_and_is_finite_for_a_perfect_prediction():
    """f(0) is 1, where the released formula is 0 / 0."""
    errors = jnp.array([[0.0, 0.1], [0.1, 0.0]])
    out = objective("mapo", errors, None, jnp.ones(2), beta=0.1)
    np.testing.assert_allclose(mapo_score(errors)[0, 0], 1.0)
    assert out.logit[0] > 0 > out.logit[1] and out.loss[0] < out.loss[1]
    gradient = jax.grad(lambda e: objective("mapo", e, None, jnp.ones(2), 0.1).loss.sum())(errors)
    assert np.isfinite(gradient).all()

"""Properties of the SPO objective that hold for any network."""

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.methods.spo.objective import spo_loss

BETA = 10.0
EPS = 0.1
SETTINGS = dict(beta=BETA, eps=EPS)
RNG = np.random.default_rng(0)


def log_probs(scale, count=64):
    """Log-probabilities of winner and loser, and the reference's: log-ratios are about ``scale``."""
    reference = RNG.normal(-2.0, 0.5, (2, count))
    policy = reference + RNG.normal(0, scale, (2, count))
    return tuple(jnp.asarray(values, jnp.float32) for values in (*policy, *reference))


def test_log_two_where_policy_and_reference_agree():
    win, lose, *_ = log_probs(0.0)
    out = spo_loss(win, lose, win, lose, **SETTINGS)
    np.testing.assert_allclose(out.loss, np.log(2), rtol=1e-6)
    assert (out.ratio_win == 1).all() and (out.ratio_lose == 1).all()


def test_swapping_winner_and_loser():
    """L(m) - L(-m) = -βm, where m is the difference of the clipped log-ratios."""
    win, lose, ref_win, ref_lose = log_probs(0.1)
    there = spo_loss(win, lose, ref_win, ref_lose, **SETTINGS)
    back = spo_loss(lose, win, ref_lose, ref_win, **SETTINGS)
    clipped = np.log(np.clip(np.stack([there.ratio_win, there.ratio_lose]), 1 - EPS, 1 + EPS))
    np.testing.assert_allclose(there.loss - back.loss, -BETA * (clipped[0] - clipped[1]), atol=2e-5)
    np.testing.assert_array_equal(there.ratio_win, back.ratio_lose)
    outside = abs(np.asarray(there.ratio_win) - 1) > EPS
    assert 0 < outside.sum() < len(outside)  # both sides of the clip were seen


def test_the_gradient_pushes_apart_and_ends_at_the_clip():
    """Each member by itself: one that has moved far enough gets no gradient, and its partner still does."""
    log = np.log
    cases = [  # (log-ratio of winner, of loser) -> whether winner and loser have a gradient
        ((0.0, 0.0), (True, True)),
        ((log(1 + EPS) + 1e-3, 0.0), (False, True)),
        ((0.0, log(1 - EPS) - 1e-3), (True, False)),
        ((log(1 - EPS) - 1e-3, 0.0), (False, True)),  # the clip does not ask for the direction
        ((1.0, -1.0), (False, False)),
    ]
    ratios = jnp.asarray([case[0] for case in cases], jnp.float32).T
    reference = jnp.full(len(cases), -2.0)

    def total(win, lose):
        return spo_loss(win, lose, reference, reference, **SETTINGS).loss.sum()

    slopes = jax.grad(total, argnums=(0, 1))(ratios[0] - 2, ratios[1] - 2)
    for member, sign in ((0, -1), (1, 1)):
        expected = [case[1][member] for case in cases]
        assert (np.sign(slopes[member]) == sign * np.asarray(expected)).all()
    np.testing.assert_allclose([slopes[0][0], slopes[1][0]], [-BETA / 2, BETA / 2], rtol=1e-6)


def test_only_ratios_matter():
    win, lose, ref_win, ref_lose = log_probs(0.05)
    one = spo_loss(win, lose, ref_win, ref_lose, **SETTINGS).loss
    other = spo_loss(win + 1, lose - 2, ref_win + 1, ref_lose - 2, **SETTINGS).loss
    np.testing.assert_allclose(one, other, rtol=1e-4)


def test_pairs_do_not_see_each_other():
    arrays = log_probs(0.05)
    one = spo_loss(*arrays, **SETTINGS).loss
    np.testing.assert_allclose(spo_loss(*(x[5:6] for x in arrays), **SETTINGS).loss, one[5:6], rtol=1e-6)

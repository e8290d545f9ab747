"""The preference loss: ties, symmetry, weights; golden case d has the reference's numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.spm.loss import preference_loss
from spo_jax.spm.train import pair_accuracy

FIRST, SECOND, TIE = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]


def test_perfect_tie_costs_nothing_and_a_spread_one_does():
    scores, labels = jnp.array([[3.0, 3.0], [3.0, 4.0]]), jnp.array([TIE, TIE])
    _, per_pair = preference_loss(scores, labels, jnp.ones(2))
    assert per_pair[0] == pytest.approx(0, abs=1e-6) and per_pair[1] > 0.1


def test_swapping_pictures_and_labels_changes_nothing():
    scores, labels = jnp.array([[1.0, 2.5], [0.3, -1.0]]), jnp.array([FIRST, SECOND])
    weights = jnp.array([1.0, 0.25])
    straight, swapped = (
        preference_loss(s, y, weights)[0] for s, y in ((scores, labels), (scores[:, ::-1], labels[:, ::-1]))
    )
    assert straight == pytest.approx(float(swapped))


def test_weights_are_normalised_over_the_batch():
    scores, labels = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([FIRST, FIRST])
    loss, per_pair = preference_loss(scores, labels, jnp.array([1.0, 3.0]))
    assert loss == pytest.approx(float(per_pair[0] / 4 + 3 * per_pair[1] / 4))


def test_accuracy_leaves_ties_out_and_halves_equal_scores():
    scores = jnp.array([[2.0, 1.0], [2.0, 1.0], [1.0, 1.0], [1.0, 5.0]])
    right, decided = pair_accuracy(scores, jnp.array([FIRST, SECOND, FIRST, TIE]))
    np.testing.assert_array_equal(right, [1.0, 0.0, 0.5, 0.0])
    np.testing.assert_array_equal(decided, [1, 1, 1, 0])

"""Loss and accuracy of pairs: ties and symmetry. Golden case d compares with the reference's numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from spo_jax.methods.common.preference.loss import pair_accuracy, pair_losses

FIRST, SECOND, TIE = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]


def test_a_tie_costs_nothing_only_if_scores_are_equal():
    same, spread = pair_losses(jnp.array([[3.0, 3.0], [3.0, 4.0]]), jnp.array([TIE, TIE]))
    assert same == pytest.approx(0, abs=1e-6) and spread > 0.1


def test_swapping_images_and_labels_changes_nothing():
    scores, labels = jnp.array([[1.0, 2.5], [0.3, -1.0]]), jnp.array([FIRST, SECOND])
    np.testing.assert_allclose(pair_losses(scores, labels), pair_losses(scores[:, ::-1], labels[:, ::-1]), rtol=1e-6)


def test_accuracy_leaves_ties_out_and_counts_equal_scores_half():
    scores = jnp.array([[2.0, 1.0], [2.0, 1.0], [1.0, 1.0], [1.0, 5.0]])
    right, decided = pair_accuracy(scores, jnp.array([FIRST, SECOND, FIRST, TIE]))
    np.testing.assert_array_equal(right, [1.0, 0.0, 0.5, 0.0])
    np.testing.assert_array_equal(decided, [1, 1, 1, 0])

"""Paired comparisons: means, standard errors, and that the pairing is used."""

import numpy as np
import pytest

from spo_jax.core.statistics import paired_scores


def test_pairing_cancels_what_pictures_share():
    rng = np.random.default_rng(0)
    shared, noise = rng.normal(size=400), 0.01 * rng.normal(size=400)
    score = paired_scores({"a": shared}, {"a": shared + 0.1 + noise}, {"a": "meaning"})["a"]
    assert score["change"] == pytest.approx(0.1, abs=0.002)
    assert score["change_se"] == pytest.approx(0.01 / 20, rel=0.1)  # std / sqrt(n)
    assert score["before_se"] == pytest.approx(1 / 20, rel=0.1)
    assert score["before_std"] == pytest.approx(shared.std())
    assert score["after"] - score["before"] == pytest.approx(score["change"])
    assert score["meaning"] == "meaning" and not score["lower_is_better"]


def test_one_picture_has_no_error_to_speak_of():
    score = paired_scores({"a": np.ones(1)}, {"a": np.zeros(1)}, {}, ("a",))["a"]
    assert score["change"] == -1 and score["lower_is_better"]
    assert score["before_se"] is score["after_se"] is score["change_se"] is None

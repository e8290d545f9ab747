"""Paired comparisons: means, standard errors, and that the pairing is used."""

import numpy as np
import pytest

from spo_jax.core.statistics import mean_and_error, paired_scores


def test_pairing_cancels_what_images_share():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=400)
    noise = 0.01 * rng.normal(size=400)
    score = paired_scores({"a": shared}, {"a": shared + 0.1 + noise}, {"a": "meaning"})["a"]
    assert score["change"] == pytest.approx(0.1, abs=0.002)
    assert score["change_se"] == pytest.approx(0.01 / 20, rel=0.1)  # std / sqrt(n)
    assert score["before_se"] == pytest.approx(1 / 20, rel=0.1)
    assert score["before_std"] == pytest.approx(shared.std())
    assert score["after"] - score["before"] == pytest.approx(score["change"])
    assert score["meaning"] == "meaning" and not score["lower_is_better"]


def test_a_single_image_has_no_standard_error():
    score = paired_scores({"a": np.ones(1)}, {"a": np.zeros(1)}, {}, ("a",))["a"]
    assert score["change"] == -1 and score["lower_is_better"]
    assert score["before_se"] is score["after_se"] is score["change_se"] is None


def test_a_mean_and_its_error():
    values = np.array([1.0, 2.0, 3.0, 6.0], np.float32)
    mean, error = mean_and_error(values)
    assert mean == 3.0 and error == pytest.approx(values.std(ddof=1) / 2)
    assert mean_and_error(values[:1]) == (1.0, None)

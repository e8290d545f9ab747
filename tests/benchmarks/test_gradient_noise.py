"""How alike gradients are: a known share of signal is found, whatever their lengths."""

import numpy as np
import pytest

from benchmarks.gradient_noise import alikeness


def test_the_cosine_of_a_common_part_is_found():
    """Of unit vectors with a common part of size s and independent rests in many dimensions, the cosine is s²."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((20, 40_000)) / 200
    common = rng.standard_normal(40_000) / 200
    gradients = 0.6 * common + 0.8 * noise
    lengths = rng.uniform(0.5, 2, (20, 1))
    cosine, error = alikeness(lengths * gradients)
    assert cosine == pytest.approx(0.36, abs=0.01)
    assert 0 < error < 0.01


def test_one_gradient_has_no_noise_and_independent_ones_no_signal():
    rng = np.random.default_rng(1)
    one = np.repeat(rng.standard_normal((1, 9)), 4, axis=0)
    assert alikeness(one) == (pytest.approx(1), pytest.approx(0, abs=1e-7))
    cosine, error = alikeness(rng.standard_normal((30, 1000)))
    assert abs(cosine) < 3 * error < 0.02

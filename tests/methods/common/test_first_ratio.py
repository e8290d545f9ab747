"""A likelihood ratio that should be 1 is warned of where rounding would decide what is clipped."""

import logging

import pytest

from spo_jax.methods.common.first_ratio import warn_of_rounding


@pytest.mark.parametrize(("error", "limit", "warned"), [(0.02, 0.1, True), (0.009, 0.1, False), (2e-5, 1e-4, True)])
def test_a_ratio_that_does_not_start_at_1_is_a_warning_of_one_line(caplog, error, limit, warned):
    with caplog.at_level(logging.WARNING, logger="absl"):
        warn_of_rounding(error, "spo.eps", limit)
    assert len(caplog.messages) == warned
    if warned:
        assert f"{error:.2g} away" in caplog.text and f"spo.eps is {limit:g}" in caplog.text
        assert "--config.dtype=float32" in caplog.text and "\n" not in caplog.messages[0]

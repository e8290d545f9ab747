"""The rules of Diffusion-DPO on healthy and on sick curves that were made up."""

import pytest

from spo_jax.methods.diffusion_dpo import rules
from tests.support.curves import curves_of, line


@pytest.mark.parametrize(("last", "level", "learns"), [(0.7, "good", True), (0.5, "note", False)])
def test_ordering(last, level, learns):
    found = rules.ordering(curves_of(implicit_accuracy=line(0.5, last, noise=0.05)))
    assert (found.level, found.learns) == (level, learns)


@pytest.mark.parametrize(("first", "learns"), [(0.55, True), (0.65, False)])
def test_without_a_reference_the_share_has_to_rise(first, learns):
    settings = {"dpo": {"objective": "mapo"}}
    found = rules.ordering(curves_of(settings, implicit_accuracy=line(first, 0.65, noise=0.02)))
    assert found.learns == learns


@pytest.mark.parametrize(
    ("win", "lose", "level", "learns"),
    [
        (-0.001, 0.004, "good", None),
        (0.001, 0.004, "note", None),  # half a per cent of the reference's error
        (0.02, 0.04, "problem", False),
    ],
)
def test_errors_grow(win, lose, level, learns):
    """Winners better than before; a little worse, as the loss allows; and much worse, when images decay."""
    curves = curves_of(
        mse_change__win=line(0, win, noise=1e-4),
        mse_change__lose=line(0, lose, noise=1e-4),
        mse_reference__win=line(0.2, 0.2, noise=0.02),
    )
    found = rules.errors_grow(curves)
    assert (found.level, found.learns) == (level, learns)
    assert "that of losers +0.0" in found.text


def test_short_curves_say_nothing_and_mapo_has_no_reference():
    assert rules.ordering(curves_of(implicit_accuracy=[0.5, 0.6])) is None
    assert rules.errors_grow(curves_of(mse__win=line(0.1, 0.2))) is None

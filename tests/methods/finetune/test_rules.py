"""The rule of plain fine-tuning on healthy and on sick curves that were made up."""

import pytest

from spo_jax.methods.finetune import rules
from tests.support.curves import curves_of, line


@pytest.mark.parametrize(
    ("last", "level", "learns"), [(0.05, "good", True), (0.1, "note", None), (0.2, "problem", False)]
)
def test_loss(last, level, learns):
    found = rules.loss(curves_of(loss=line(0.1, last, noise=0.02)))
    assert (found.level, found.learns) == (level, learns)


def test_a_short_curve_says_nothing():
    assert rules.loss(curves_of(loss=[0.1, 0.2])) is None

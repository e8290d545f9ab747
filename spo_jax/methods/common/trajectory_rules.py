"""What the curves of methods that learn from finished images should look like, as rules."""

from spo_jax.run.diagnosis.curves import Curves
from spo_jax.run.diagnosis.rule import Finding, Rule
from spo_jax.run.diagnosis.shared import rising

# Of the clip range: with more, rounding decides what is clipped.
MOST_FIRST_ERROR = 0.1


def first_ratio_rule(field: str, usual: float) -> Rule:
    """Returns the rule about ratios that compare a policy with itself, which are 1.

    Args:
      field: config field with half the width of the clip.
      usual: its default.
    """

    def first_ratio(curves: Curves) -> Finding | None:
        """Before the first update the likelihood ratio is 1."""
        curve = curves.curve("first_ratio_error")
        if not len(curve):
            return None
        limit = curves.setting(field, usual)
        error = max(curve.values)
        if error <= MOST_FIRST_ERROR * limit:
            return Finding("good", f"Before the first update the likelihood ratio is 1 (to {max(error, 1e-7):.0e}).")
        return Finding(
            "problem",
            f"Before the first update the likelihood ratio should be 1, and it is {error:.2g} away from it ({field} is "
            f"{limit:g}): the two passes are rounded differently.",
            "Set dtype to float32, or see whether SPO_JAX_ATTENTION=plain helps.",
        )

    return first_ratio


def reward(curves: Curves) -> Finding | None:
    """The mean reward of the images that are drawn, which should rise."""
    return rising(
        curves,
        "reward",
        "The reward of the images",
        falling="Lower optimizer.learning_rate.",
        still="Train longer, draw more images in a batch, or raise optimizer.learning_rate.",
    )

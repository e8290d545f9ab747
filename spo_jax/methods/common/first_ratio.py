"""The likelihood ratio before the first update, which compares a policy with itself: curve, warning, rule."""

from absl import logging

from spo_jax.run.diagnosis.curves import Curves
from spo_jax.run.diagnosis.rule import Finding, Rule

# The curve: how far the ratios of the first training batch are from 1, the largest mean |ratio - 1| of a timestep.
FIRST_ERROR = "first_ratio_error"
CHART = ("Distance of the likelihood ratio from 1 before the first update", "rounding alone")
MOST = 0.1  # of the clip range: with more, rounding decides what is clipped


def warn_of_rounding(error: float, field: str, limit: float) -> None:
    """Warns if the ratio is too far from 1.

    Args:
      error: its largest distance from 1 at any timestep.
      field: config field with half the width of the clip.
      limit: the field's value.
    """
    if error > MOST * limit:
        logging.warning(
            "before the first update the likelihood ratio should be 1, and at one timestep it is %.2g away from it (%s "
            "is %g): this device rounds the two passes differently; use --config.dtype=float32, or see whether "
            "SPO_JAX_ATTENTION=plain helps",
            error,
            field,
            limit,
        )


def first_ratio_rule(field: str, usual: float) -> Rule:
    """Returns the rule about the curve.

    Args:
      field: as in `warn_of_rounding`.
      usual: its default.
    """

    def first_ratio(curves: Curves) -> Finding | None:
        """Before the first update the likelihood ratio is 1."""
        curve = curves.curve(FIRST_ERROR)
        if not len(curve):
            return None
        limit = curves.setting(field, usual)
        error = max(curve.values)
        if error <= MOST * limit:
            return Finding("good", f"Before the first update the likelihood ratio is 1 (to {max(error, 1e-7):.0e}).")
        return Finding(
            "problem",
            f"Before the first update the likelihood ratio should be 1, and it is {error:.2g} away from it ({field} is "
            f"{limit:g}): the two passes are rounded differently.",
            "Set dtype to float32, or see whether SPO_JAX_ATTENTION=plain helps.",
        )

    return first_ratio

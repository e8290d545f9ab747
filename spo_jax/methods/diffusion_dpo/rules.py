"""What the curves of Diffusion-DPO should look like, as rules."""

from spo_jax.run.diagnosis.curves import FEW, Curves
from spo_jax.run.diagnosis.rule import Finding, Rule


def ordering(curves: Curves) -> Finding | None:
    """The share of pairs that are ordered right, which is a half at first and has to rise above it."""
    curve = curves.curve("implicit_accuracy")
    if len(curve) < FEW:
        return None
    late = curve.half()
    shown = f"{late.mean:.1%} of the pairs in the second half of the batches (± {late.mean_error:.1%})"
    if late.mean > 0.5 + 2 * late.mean_error:
        return Finding("good", f"It orders {shown} right.", learns=True)
    return Finding(
        "note",
        f"It orders {shown} right, which is chance.",
        "Train longer, or raise optimizer.learning_rate; labels that people disagree about are learnt slowly.",
        learns=False,
    )


RULES: tuple[Rule, ...] = (ordering,)

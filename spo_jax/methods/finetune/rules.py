"""What the curves of plain fine-tuning should look like, as rules."""

from spo_jax.run.diagnosis.curves import FEW, Curves
from spo_jax.run.diagnosis.rule import Finding, Rule


def loss(curves: Curves) -> Finding | None:
    """The loss, whose noise is that of the timesteps drawn: it falls slowly, and must not rise."""
    curve = curves.curve("loss")
    if len(curve) < FEW:
        return None
    change = curve.change()
    shown = f"{change} by the fitted line, now {curve.latest:.4f}"
    if change.rises:
        return Finding(
            "problem", f"The loss rises: {shown}.", "Lower optimizer.learning_rate, or look at the images.", False
        )
    if change.falls:
        return Finding("good", f"The loss falls: {shown}.", learns=True)
    return Finding(
        "note",
        f"The loss does not fall by more than its noise: {shown}.",
        "Its noise comes from the timesteps that are drawn, so look at the grids in samples/ and at the scores.",
    )


RULES: tuple[Rule, ...] = (loss,)

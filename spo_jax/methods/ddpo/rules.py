"""What the curves of DDPO should look like, as rules."""

from spo_jax.methods.common.first_ratio import first_ratio_rule
from spo_jax.methods.common.trajectory_rules import reward
from spo_jax.run.diagnosis.curves import FEW, Curves
from spo_jax.run.diagnosis.rule import Finding, Rule

# Where most steps have left the trust region, the passes over a batch add nothing.
MUCH_CLIPPED = 0.9


def spread(curves: Curves) -> Finding | None:
    """Rewards that do not differ give advantages of rounding alone."""
    curve = curves.curve("reward_spread")
    if len(curve) < FEW:
        return None
    same = sum(value == 0 for value in curve.values)
    if not same:
        return None
    return Finding(
        "problem",
        f"All images have the same reward in {same} of {len(curve)} batches, from which nothing is learnt.",
        "Use a reward that tells images apart, or draw more images in a batch.",
        learns=False if same == len(curve) else None,
    )


def clipped(curves: Curves) -> Finding | None:
    """Ratios that leave the trust region; DDPO's is so narrow that many do after a few updates."""
    curve = curves.curve("clip_fraction")
    if not len(curve):
        return None
    share = curve.latest
    if share > MUCH_CLIPPED:
        return Finding(
            "note",
            f"{share:.0%} of the ratios are clipped.",
            "Fewer ddpo.passes cost less and lose little; or lower optimizer.learning_rate.",
        )
    return Finding("good", f"{share:.1%} of the ratios are clipped.")


RULES: tuple[Rule, ...] = (first_ratio_rule("ddpo.clip_range", 1e-4), reward, spread, clipped)

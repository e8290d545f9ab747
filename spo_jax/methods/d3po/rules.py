"""What the curves of D3PO should look like, as rules."""

from spo_jax.methods.common.first_ratio import first_ratio_rule
from spo_jax.methods.common.trajectory_rules import reward
from spo_jax.run.diagnosis.curves import FEW, Curves
from spo_jax.run.diagnosis.rule import Finding, Rule

# Beyond this, hardly any step gives a gradient.
MUCH_CLIPPED = 0.5
# With more, most of a rollout is thrown away.
MANY_TIES = 0.5


def clipped(curves: Curves) -> Finding | None:
    """Ratios that leave the trust region give no gradient; many of them mean that the policy is far from the base."""
    curve = curves.curve("clip_fraction")
    if not len(curve):
        return None
    share = curve.latest
    if share > MUCH_CLIPPED:
        return Finding(
            "problem",
            f"{share:.0%} of the ratios are clipped, which gives no gradient.",
            "The policy has moved as far from the base as d3po.eps allows: stop here, or start again with a lower "
            "optimizer.learning_rate.",
        )
    return Finding("good", f"{share:.1%} of the ratios are clipped.")


def ties(curves: Curves) -> Finding | None:
    """Pairs of which neither image is preferred, from which nothing is learnt."""
    curve = curves.curve("ties")
    if len(curve) < FEW:
        return None
    if curve.latest <= MANY_TIES:
        return Finding("good", f"{curve.latest:.0%} of the pairs are ties.")
    return Finding(
        "problem",
        f"{curve.latest:.0%} of the pairs are ties, from which nothing is learnt.",
        "Use a reward that tells images apart; of several, fewer images beat others in all of them.",
    )


def margin(curves: Curves) -> Finding | None:
    """How much likelier than the base the policy makes preferred steps than the others; 0 at first, and then above."""
    curve = curves.curve("margin")
    if len(curve) < FEW:
        return None
    late = curve.half()
    shown = f"{late.mean:+.2g} ± {late.mean_error:.1g} over the second half of the batches"
    if late.mean > 2 * late.mean_error:
        return Finding("good", f"The margin is above 0: {shown}.", learns=True)
    below = late.mean < -2 * late.mean_error
    return Finding(
        "problem" if below else "note",
        f"The margin is {'below' if below else 'not above'} 0 by more than its noise: {shown}.",
        "Lower optimizer.learning_rate." if below else "Train longer, or raise optimizer.learning_rate.",
        learns=False if below else None,
    )


RULES: tuple[Rule, ...] = (first_ratio_rule("d3po.eps", 0.1), reward, clipped, ties, margin)

"""What the curves of Diffusion-DPO should look like, as rules."""

from spo_jax.core.words import with_error
from spo_jax.run.diagnosis.curves import FEW, Curves
from spo_jax.run.diagnosis.rule import Finding, Rule

# A share of the reference's error by which winners may be predicted worse before something is wrong: the loss only asks
# that losers become worse still, and runs on the toy whose images became better have ended at a hundredth.
MUCH_WORSE = 0.05


def ordering(curves: Curves) -> Finding | None:
    """The share of pairs that are ordered right, which is a half while policy and reference agree, and has to rise.

    Without a reference (mapo) the base model orders some share right already, so that only a rise says anything.
    """
    curve = curves.curve("implicit_accuracy")
    if len(curve) < FEW:
        return None
    late = curve.half()
    shown = f"{late.mean:.1%} of the pairs in the second half of the batches (± {late.mean_error:.1%})"
    if curves.setting("dpo.objective", "dpo") == "mapo":
        learns, chance = curve.change().rises, "which has not risen"
    else:
        learns, chance = late.mean > 0.5 + 2 * late.mean_error, "which is chance"
    if learns:
        return Finding("good", f"It orders {shown} right.", learns=True)
    return Finding(
        "note",
        f"It orders {shown} right, {chance}.",
        "Train longer, or raise optimizer.learning_rate; what people disagree about is learnt slowly.",
        learns=False,
    )


def errors_grow(curves: Curves) -> Finding | None:
    """The known failure: the loss falls because losers are predicted ever worse, and winners worse than before, too."""
    win, lose = (curves.curve(f"mse_change/{which}") for which in ("win", "lose"))
    reference = curves.curve("mse_reference/win")
    if min(len(win), len(lose), len(reference)) < FEW:
        return None
    late = win.half()
    share = late.mean / reference.mean
    change = with_error(late.mean, late.mean_error, digits=1, sign="+")
    shown = (
        f"over the second half of the batches the error of winners is {change} from the reference's ({share:+.2%}), "
        f"that of losers {lose.half().mean:+.2g}"
    )
    if late.mean <= 2 * late.mean_error:
        return Finding("good", f"Winners are predicted no worse than by the reference: {shown}.")
    still = ", and losers worse still" if lose.half().mean > late.mean else ""
    found = f"Winners are predicted worse than by the reference{still}: {shown}."
    if share < MUCH_WORSE:
        return Finding("note", found, "The loss allows it; look at the images, which decay if it goes on.")
    return Finding(
        "problem",
        found,
        "It unlearns to draw: stop earlier (checkpoints are kept), or lower optimizer.learning_rate; a higher dpo.beta "
        "keeps it closer to the reference.",
        learns=False,
    )


RULES: tuple[Rule, ...] = (ordering, errors_grow)

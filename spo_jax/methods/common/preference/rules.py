"""What the curves of a preference model's training should look like, as rules."""

import math

from spo_jax.core.words import listed
from spo_jax.run.diagnosis.curves import FEW, Curves
from spo_jax.run.diagnosis.rule import Finding, Rule
from spo_jax.run.diagnosis.shared import ENOUGH
from spo_jax.run.verdict import noise_limit

CHANCE = 0.5
LOG_2 = math.log(2)  # the loss of a model that gives every pair the same score
# A model that has learnt anything from human labels is further from it; published ones end near 0.6.
NEAR_LOG_2 = 0.005
# Standard errors by which an accuracy has to differ from chance or from an earlier one.
CLEAR = 2
# If the number of held-out pairs is not known. One standard error of a hundred pairs is this large.
UNKNOWN_ERROR = 0.05


def accuracy(curves: Curves) -> Finding | None:
    """Accuracy on held-out pairs: above chance; and if it is clearly above that before training, the model learns."""
    by_time = _latest(curves)
    if not by_time:
        return None
    error = _error(curves)
    best = max(by_time, key=by_time.get)
    shown = f"{by_time[best]:.1%} of held-out pairs at t = {best}, the best timestep"
    if by_time[best] < CHANCE + noise_limit(len(by_time)) * error:  # the best of several is above chance by chance
        return Finding(
            "problem",
            f"It orders {shown}, which is chance (50% ± {error:.1%}).",
            "Check the labels (python -m spo_jax.prepare lists rejected rows), train for longer, or raise "
            "optimizer.learning_rate.",
            learns=False,
        )
    first = _at(curves, 0)
    rises = bool(first) and _mean(by_time) - _mean(first) > _clear_change(curves)
    return Finding("good", f"It orders {shown}, where chance is 50% ± {error:.1%}.", learns=rises or None)


def chance_by_timestep(curves: Curves) -> Finding | None:
    """Timesteps at which the model knows nothing, where SPO should not branch."""
    by_time = _latest(curves)
    error = _error(curves)
    blind = [t for t, value in by_time.items() if value < CHANCE + CLEAR * error]
    seeing = by_time.keys() - blind
    if not blind or not seeing:
        return None
    return Finding(
        "note",
        f"At t = {listed([str(t) for t in blind])} its accuracy cannot be told from chance.",
        f"As a judge, use it below t = {min(blind)} only (spo.divert_start_step); images hold little there, so some "
        "loss at high timesteps is natural."
        if min(blind) > max(seeing)
        else "Measure more held-out pairs before you rely on it at these timesteps.",
    )


def overfitting(curves: Curves) -> Finding | None:
    """The loss falls on the pairs that are trained on, while accuracy on held-out pairs falls."""
    held_out = curves.mean("eval_accuracy")
    loss = curves.curve("loss")
    if len(held_out) < 3 or len(loss) < FEW or not _latest(curves):
        return None
    peak = max(held_out.values)
    lost = peak - held_out.values[-1]
    if lost <= _clear_change(curves) or not loss.change().falls:
        return Finding("good", "Accuracy on held-out pairs has not fallen from its best.")
    step = held_out.steps[held_out.values.index(peak)]
    return Finding(
        "problem",
        f"The loss still falls, and accuracy on held-out pairs fell from {peak:.1%} in batch {step} to "
        f"{held_out.values[-1]:.1%}: it learns its pairs by heart.",
        f"Train for about {step} batches, with more pairs, flip, or a higher optimizer.weight_decay.",
    )


def loss(curves: Curves) -> Finding | None:
    """The loss, which stays at log 2 as long as the model tells no pair apart."""
    curve = curves.curve("loss")
    if len(curve) < FEW:
        return None
    change = curve.change()
    if abs(curve.latest - LOG_2) < NEAR_LOG_2 and curves.batches >= ENOUGH:
        return Finding(
            "problem",
            f"The loss is {curve.latest:.4f}, log 2: it gives both images of a pair the same score.",
            "Raise optimizer.learning_rate, and check that optimizer.warmup_steps is over.",
            learns=False,
        )
    if change.falls:
        return Finding("good", f"The loss falls: {change} by the fitted line, now {curve.latest:.3f}.", learns=True)
    if change.rises:
        return Finding(
            "problem",
            f"The loss rises: {change} by the fitted line, now {curve.latest:.3f}.",
            "Lower optimizer.learning_rate.",
            learns=False,
        )
    return Finding(
        "note",
        f"The loss does not fall by more than its noise: {change} by the fitted line, now {curve.latest:.3f}.",
        "Train longer; accuracy on held-out pairs says more.",
        learns=False,
    )


def _at(curves: Curves, step: int) -> dict[int, float]:
    found = {t: dict(zip(c.steps, c.values, strict=True)) for t, c in curves.timesteps("eval_accuracy").items()}
    return {t: values[step] for t, values in found.items() if step in values}


def _latest(curves: Curves) -> dict[int, float]:
    """Returns the latest held-out accuracy by timestep."""
    return {t: curve.values[-1] for t, curve in curves.timesteps("eval_accuracy").items() if len(curve)}


def _mean(by_time: dict[int, float]) -> float:
    return sum(by_time.values()) / len(by_time)


def _clear_change(curves: Curves) -> float:
    """Returns how far the mean over timesteps has to move to have changed clearly.

    Pairs and noise are the same at every evaluation, so the difference of two means has about the error of one mean.
    """
    return CLEAR * _error(curves) / math.sqrt(len(_latest(curves)))


def _error(curves: Curves) -> float:
    """Returns the standard error of an accuracy at chance, from the number of held-out pairs if it is known."""
    counts = [score["count"] for score in curves.scores.values() if score.get("count")]
    pairs = min(counts) if counts else curves.setting("eval.pairs", 0)
    return math.sqrt(CHANCE * (1 - CHANCE) / pairs) if pairs else UNKNOWN_ERROR


RULES: tuple[Rule, ...] = (accuracy, chance_by_timestep, overfitting, loss)

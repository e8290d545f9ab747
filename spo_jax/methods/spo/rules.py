"""What the curves of SPO should look like, as rules; docs/guide.md shows healthy and sick ones."""

import itertools
import math
import statistics

from spo_jax.core.words import listed, readable, with_error
from spo_jax.methods.common.first_ratio import first_ratio_rule
from spo_jax.run.diagnosis.curves import FEW, Curve, Curves
from spo_jax.run.diagnosis.rule import Finding, Rule
from spo_jax.run.diagnosis.shared import rising
from spo_jax.run.guard.look import looks_of
from spo_jax.run.guard.sentences import alarm_of

# Published runs clip a few pairs in a hundred. Where every fifth gives no gradient, the steps are too long.
MUCH_CLIPPED = 0.2
# Beyond this, hardly any pair is trained on.
ALL_CLIPPED = 0.8
# A pair a batch: with fewer, many batches train on nothing at all.
FEW_PAIRS = 1.0
# Of a batch's pools. Published runs train on tens of per cent; below this nearly all of a rollout is thrown away.
FEW_VALID = 0.02
# Published thresholds, at which any useful judge finds pairs; LPO's are those of its last step.
THRESHOLD_SD15 = 0.3
THRESHOLD_SDXL = 0.4
THRESHOLD_LPO = 0.45
# Above this timestep x0 predictions are blurred, and judges are closest to chance (`evaluate_spm` measures it).
EARLY = 600
SURE = 0.9
# Half of a rise that was reported and has gone again is not noise of a few images, which stay the same.
LOST = 0.5


def clipped(curves: Curves) -> Finding | None:
    """Ratios that leave the trust region give no gradient; many of them mean that steps are too long."""
    curve = curves.mean("clip_fraction")
    if not len(curve):
        return None
    share = curve.latest
    ratios = [curves.curve(f"ratio/{which}").latest for which in ("win", "lose")]
    where = f"the ratios of winners and losers are {ratios[0]:.4g} and {ratios[1]:.4g} on average"
    if share > MUCH_CLIPPED:
        rate = curves.setting("optimizer.learning_rate", None)
        now = "" if rate is None else f" (now {rate:g}) to {rate / 5:.2g}"
        what = "so hardly anything is trained any more" if share > ALL_CLIPPED else "which gives no gradient"
        return Finding(
            "problem",
            f"{share:.0%} of the ratios are clipped, {what}; {where}.",
            f"The steps are too long: start again with a lower optimizer.learning_rate{now}.",
            learns=False if share > ALL_CLIPPED else None,
        )
    return Finding("good", f"{share:.1%} of the ratios are clipped; {where}.")


def valid_pairs(curves: Curves) -> Finding | None:
    """A pair is valid if the judge prefers its winner clearly enough; nothing else is trained on."""
    count, share = curves.curve("valid_pairs"), curves.curve("valid_share")
    if not len(count) or not len(share):
        return None
    if count.latest >= FEW_PAIRS and share.latest >= FEW_VALID:
        return Finding(
            "good",
            f"{count.latest:.0f} pairs of a batch are valid, {share.latest:.0%} of its pools; they were "
            f"{share.first:.0%} at first.",
        )
    threshold = curves.setting("spo.threshold", None)
    # The probabilities of a softmax over two scores differ by tanh of half the scores' difference.
    needs = "" if threshold is None else f"; spo.threshold = {threshold:g} asks for {2 * math.atanh(threshold):.2g}"
    found = (
        f"Only {count.latest:.1f} pairs of a batch are valid, {share.latest:.1%} of its pools: winner and loser differ "
        f"by {curves.mean('judge_gap').latest:.2g} on average{needs}."
    )
    usual, whose = _published_threshold(curves)
    if threshold is not None and threshold > usual:
        return Finding("problem", found, f"Lower spo.threshold; {whose}.")
    if share.first >= FEW_VALID and count.first >= FEW_PAIRS:
        advice = "There were enough at first, so the judge hardly sees a difference any more: stop here."
        return Finding("note", found, advice)
    return Finding(
        "problem",
        found,
        "The judge hardly tells candidates apart, and a lower threshold would train on noise: measure it with "
        "spo_jax.evaluate_spm, train it for longer or on more pairs, and leave out timesteps at which it is at chance "
        "(a higher spo.divert_start_step).",
    )


def _published_threshold(curves: Curves) -> tuple[float, str]:
    """Returns the highest published threshold of such a run, and a sentence about those that are published."""
    if curves.setting("spo.judged", "clean") == "noisy":
        return THRESHOLD_LPO, "LPO's rises from 0.35 to 0.5 for SD 1.5, and from 0.45 to 0.6 for SDXL"
    # Nothing else in the settings says of which kind the model is, and only the recipe for SDXL has inner steps.
    usual = THRESHOLD_SDXL if curves.setting("spo.num_inner_step", 0) else THRESHOLD_SD15
    return usual, f"SPO's is {THRESHOLD_SD15:g} for SD 1.5 and {THRESHOLD_SDXL:g} for SDXL"


def sure_too_early(curves: Curves) -> Finding | None:
    """At high timesteps judges know least, so one that is sure of nearly all pairs may answer to noise."""
    early = {t: curve for t, curve in curves.timesteps("valid_share_at").items() if t >= EARLY and len(curve)}
    if not early:
        return None
    sure = [t for t, curve in early.items() if curve.mean > SURE]
    if not sure:
        return None
    return Finding(
        "note",
        f"At t ≥ {min(sure)} the judge is sure of more than {SURE:.0%} of the pairs, where judges know least: it may "
        "answer to noise.",
        "Measure its accuracy there (python -m spo_jax.evaluate_spm). At chance, branch later (a higher "
        "spo.divert_start_step), or train it at these timesteps.",
    )


def judge_score(curves: Curves) -> Finding | None:
    """The judge's mean score of the candidates, which should rise."""
    return rising(
        curves,
        "judge_score",
        "The judge's score of the candidates",
        falling="Lower optimizer.learning_rate; if it falls from the first batches on, check that the judge belongs to "
        "this model.",
        still="Train longer; if pairs are valid and ratios stay at 1, raise optimizer.learning_rate.",
    )


def margin(curves: Curves) -> Finding | None:
    """How much likelier than the reference the policy makes winners than losers; 0 at first, and then above."""
    curve = curves.curve("margin")
    if len(curve) < FEW:
        return None
    late = curve.half()
    shown = f"{with_error(late.mean, late.mean_error, digits=1, sign='+')} over the second half of the batches"
    if late.mean > 2 * late.mean_error:
        return Finding("good", f"The margin is above 0: {shown}.", learns=True)
    below = late.mean < -2 * late.mean_error
    advice = "Few valid pairs or a low optimizer.learning_rate make it grow slowly."
    if below:
        advice = "The policy makes losers likelier than winners: lower optimizer.learning_rate."
    elif curves.mean("clip_fraction").latest > MUCH_CLIPPED:
        advice = "The clipped ratios explain it."
    found = f"The margin is {'below' if below else 'not above'} 0 by more than its noise: {shown}."
    return Finding("problem" if below else "note", found, advice, learns=False)


def past_its_best(curves: Curves) -> Finding | None:
    """Scores besides the judge's that fall again; if the judge's rises meanwhile, its errors are what is learnt.

    A guard measures the same better, in pairs, so that the rule is silent where one has given an alarm.
    """
    if alarm_of(looks_of(curves.rows), curves.setting("eval.guard_looks", 2)):
        return None
    fallen = _fallen_scores(curves)
    if not fallen:
        return None
    why = "the steps are too long, or there are too many of them"
    if curves.mean("judge_score").change().rises:
        why = "the judge's score rises meanwhile, so its errors are what is learnt"
    return Finding(
        "problem",
        f"The run is past its best: {listed(fallen)}; {why}.",
        "Take a checkpoint from then (log.keep_every keeps more of them); next time train for fewer batches, lower "
        "optimizer.learning_rate, or use a better judge.",
    )


def _fallen_scores(curves: Curves) -> list[str]:
    """Describes the reported scores, other than the judge's own, that became worse, or lost half of what they won."""
    if curves.lower_is_better is None and not curves.scores:
        return []  # nothing says in which direction a score improves
    fallen = []
    for name in curves.names("eval_"):
        score, curve = name.removeprefix("eval_"), curves.curve(name)
        if _is_judges(score, curves):
            continue
        lower = score in (curves.lower_is_better or ()) or bool(curves.scores.get(score, {}).get("lower_is_better"))
        sign = -1 if lower else 1
        lost = _lost(Curve(curve.steps, [sign * value for value in curve.values]), sign)
        if lost:
            fallen.append(f"{readable(score)} {lost}")
    return fallen


def _is_judges(score: str, curves: Curves) -> bool:
    """Says whether a score is the judge's own; the run of an earlier version says it of no score."""
    if curves.judge_scores is not None:
        return score in curves.judge_scores
    return curves.setting("spo.reward", "spm").partition(":")[0] == "spm" and score.startswith("spm_score")


def _lost(curve: Curve, sign: int) -> str:
    """Describes the loss of a score that should rise; empty if there is none to speak of."""
    if len(curve) < 3:
        return ""
    first, last = curve.values[0], curve.values[-1]
    peak = max(curve.values)
    # The noise of these few images is how far an evaluation is off the line through its neighbours, as a trend is none.
    steps = [after - before for before, after in itertools.pairwise(curve.values)]
    bends = [abs(after - before) for before, after in itertools.pairwise(steps)]
    noise = statistics.median(bends) if len(bends) >= 3 else 0.1 * abs(first)
    best_at = curve.steps[curve.values.index(peak)]
    if peak - last > max(noise, LOST * (peak - first)):
        when = f"in batch {best_at}" if best_at else "before training"
        return f"went from {sign * peak:.3g} {when} to {sign * last:.3g}"
    return ""


RULES: tuple[Rule, ...] = (
    first_ratio_rule("spo.eps", 0.1), clipped, valid_pairs, sure_too_early, judge_score, margin, past_its_best,
)  # fmt: skip

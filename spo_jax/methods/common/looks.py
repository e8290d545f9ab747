"""The looks of a run's guard: the first images of the evaluation, scored by the judge, other rewards and signs."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from spo_jax.core.errors import UserError
from spo_jax.core.signs import SIGN_MEANINGS, image_signs
from spo_jax.core.words import readable
from spo_jax.methods.common.before_after import BeforeAfter, ImageArray
from spo_jax.methods.common.judged import judges
from spo_jax.methods.common.settings import AdapterSettings
from spo_jax.methods.common.state import TrainState
from spo_jax.rewards.base import Reward, Scores
from spo_jax.rewards.common.own import measured
from spo_jax.run.guard.guard import Guard, Plan
from spo_jax.run.guard.look import HELD_OUT, SIGN, TRAINED, Measured

Charts = dict[str, tuple[str, str]]


def make_guard(
    settings: AdapterSettings, evaluation: BeforeAfter, rewards: Sequence[Reward], judge: Reward | None
) -> tuple[Guard, Charts]:
    """Makes the guard of a run, and the titles and hints of its curves.

    Args:
      settings: settings of the run.
      evaluation: the evaluation, whose first images a look draws.
      rewards: rewards from which the run does not learn.
      judge: the reward from which it learns; None if it learns from none, or from one that reads no images.

    Raises:
      UserError: a reward cannot score these images, or two have a score of the same name.
    """
    own = settings.eval
    count = min(own.guard_images, own.images)
    prompts = evaluation.prompts[:count]
    trained_on = [] if judge is None else [judge]
    for reward in [*trained_on, *rewards]:
        reward.check(prompts, evaluation.image_size)
    names = [name for reward in rewards for name in reward.meanings]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"config field eval.guard_rewards: several rewards give a score {', '.join(twice)}")

    lower = [name for reward in rewards for name in reward.lower_is_better]

    def measure(number: int, state: TrainState) -> Measured:
        images = evaluation.images_at(number, state.params, count)
        scores = (_scores(of, images, prompts) for of in (trained_on, rewards))
        return Measured(*scores, image_signs(images), lower)

    every = own.guard_every or settings.log.eval_every
    plan = Plan(own.guard, every, own.guard_looks, count, _about(settings, prompts))
    return Guard(plan, measure), _charts(count, trained_on, rewards)


def _scores(rewards: Sequence[Reward], images: ImageArray, prompts: Sequence[str]) -> Scores:
    return {name: values for reward in rewards for name, values in measured(reward, images, prompts).items()}


def _about(settings: AdapterSettings, prompts: Sequence[str]) -> dict[str, Any]:
    """All on which the scores of a look depend besides the trained weights."""
    own = settings.eval
    return {
        "prompts": hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest(),
        "seed": own.seed,
        "steps": own.steps,
        "guidance_scale": own.guidance_scale,
        "rewards": own.guard_rewards,
        "judges": [list(judge) for judge in judges(settings)],
    }


def _charts(count: int, trained_on: Sequence[Reward], rewards: Sequence[Reward]) -> Charts:
    """Titles and hints of the curves of looks, by the names that `spo_jax.run.guard.look.Look.row` gives them."""
    of = f"of {count} images"
    hint = "standard errors; held out below the limit: hacked, or diverging if trained falls too"
    charts = {"guard_change": ("Change since the best look", hint)}
    for prefix, what, meanings in (
        (TRAINED, "trained on", [reward.meanings for reward in trained_on]),
        (HELD_OUT, "held out", [reward.meanings for reward in rewards]),
        (SIGN, "sign of hacking", [SIGN_MEANINGS]),
    ):
        for name, meaning in [item for some in meanings for item in some.items()]:
            group = name.partition("/")[0]
            title = f"{readable(group)} {of} ({what})"
            charts.setdefault(f"{prefix}{group}", (title[0].upper() + title[1:], "" if "/" in name else meaning))
    return charts

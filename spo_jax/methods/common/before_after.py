"""Images drawn with an adapter before and after training: their scores and the grids that the report shows."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.images import image_grid, to_uint8
from spo_jax.core.statistics import paired_scores
from spo_jax.core.typing import Float, Params, UInt8
from spo_jax.methods.common.settings import EvalSettings
from spo_jax.models.base import Pipeline
from spo_jax.models.sampler import Sampler, initial_latents
from spo_jax.rewards import check_reward, load_reward
from spo_jax.rewards.base import Context, Reward, Scores

GRID_COLUMNS = 8
REPORTED_GRIDS = 3

ImageArray = Float[np.ndarray, "b H W 3"]


class BeforeAfter:
    """Images of the evaluation prompts, drawn from fixed noise by a model with an adapter.

    Args:
      pipeline: the model.
      settings: settings of the evaluation.
      lora_scale: alpha / r.
      prompts: evaluation prompts, repeated until there are ``settings.images`` of them.
      rewards: rewards that score the images.

    Raises:
      UserError: a reward cannot score images of this model or these prompts, or two rewards have a score of the same
        name.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        settings: EvalSettings,
        lora_scale: float,
        prompts: Sequence[str],
        rewards: Sequence[Reward],
    ):
        self.settings = settings
        self.prompts = list(itertools.islice(itertools.cycle(prompts), settings.images))
        self.latents = initial_latents(settings.seed, settings.images, pipeline.latent_shape)
        self.condition = pipeline.encode_prompts(self.prompts)
        self.sampler = Sampler(
            pipeline,
            steps=settings.steps,
            guidance=settings.guidance_scale,
            lora_scale=lora_scale,
            batch=min(settings.batch, settings.images),
        )
        self.rewards = rewards
        for reward in rewards:
            reward.check(self.prompts, pipeline.image_size)
        _check_names(rewards)

    def start(self, lora: Params) -> None:
        """Draws and scores the images before training.

        Args:
          lora: the fresh adapter; the images are those of the base model, because the adapter's B is zero.

        Raises:
          UserError: a score is not finite.
        """
        self.before = self.images(lora)
        self._scores_before = self.measure(self.before)

    def images(self, lora: Params, count: int | None = None) -> ImageArray:
        """Draws one image per prompt.

        Args:
          lora: the adapter.
          count: number of prompts to use, from the first on; None uses all.

        Returns:
          Images near [-1, 1], not clipped.
        """
        count = len(self.prompts) if count is None else min(count, len(self.prompts))
        return self.sampler.draw(self.condition, self.latents[:count], lora)

    def measure(self, images: ImageArray) -> Scores:
        """Scores what `images` returned for all prompts; returns the scores by name.

        Raises:
          UserError: a score is not finite.
        """
        scores = {}
        for reward in self.rewards:
            scores |= reward.measure(images, self.prompts)
        for name, values in scores.items():
            if not np.isfinite(values).all():
                raise UserError(f"{name} of the evaluation images is not finite: check eval.guidance_scale and dtype")
        return scores

    def grid(self, lora: Params) -> UInt8[np.ndarray, "H W 3"]:
        """Draws the first images and arranges them in a grid."""
        return image_grid(to_uint8(self.images(lora, self.settings.grid_images)), GRID_COLUMNS)

    def finish(self, lora: Params) -> tuple[dict[str, Any], list[tuple[str, np.ndarray, np.ndarray]]]:
        """Draws and scores the images after training.

        Returns:
          The entries for ``summary.json`` (number of images; means, paired changes and their standard errors), and the
          grids as (caption, before, after).

        Raises:
          UserError: a score is not finite.
        """
        after = self.images(lora)
        scores_after = self.measure(after)
        meanings = {name: text for reward in self.rewards for name, text in reward.meanings.items()}
        lower = [name for reward in self.rewards for name in reward.lower_is_better]
        scores = paired_scores(self._scores_before, scores_after, meanings, lower)
        return {"images": len(self.prompts), "scores": scores}, self._grids(after)

    def _grids(self, after: ImageArray) -> list[tuple[str, np.ndarray, np.ndarray]]:
        count = min(self.settings.grid_images, len(after))
        grids = []
        for first in range(0, len(after), count)[:REPORTED_GRIDS]:
            cut = slice(first, first + count)
            pair = (image_grid(_enlarged(to_uint8(images[cut])), GRID_COLUMNS) for images in (self.before, after))
            names = ", ".join(dict.fromkeys(self.prompts[cut]))
            grids.append((f"Same prompts, same noise: {names}", *pair))
        return grids


def load_rewards(
    settings: EvalSettings, pipeline: Pipeline, mesh: Mesh | None, options: Any, shared: dict[str, Reward]
) -> list[Reward]:
    """Loads the rewards that the settings of the evaluation name.

    Args:
      settings: settings of the evaluation.
      pipeline: the model whose images are scored.
      mesh: mesh on which the rewards' weights are placed.
      options: the method's settings; a reward's options are the fields of the group that is named after it.
      shared: rewards that are loaded already, by their names in the settings; newly loaded ones are added.

    Raises:
      UserError: a reward cannot be loaded.
    """
    rewards = []
    for spec in settings.reward_names:
        if spec not in shared:
            group = reward_options(options, spec)
            shared[spec] = load_reward(spec, Context(pipeline.kind, pipeline.dtype, mesh, group))
        rewards.append(shared[spec])
    return rewards


def check_rewards(settings: Any, **judges: str) -> None:
    """Refuses rewards that cannot be found, before anything is loaded.

    Args:
      settings: the method's settings.
      **judges: rewards besides those of the evaluation, by the group whose field ``reward`` names them.

    Raises:
      UserError: there is no such reward, or its weights are missing.
    """
    named = [("eval.rewards", spec) for spec in settings.eval.reward_names]
    named += [(f"{group}.reward", spec) for group, spec in judges.items()]
    for field, spec in named:
        check_reward(spec, Context(options=reward_options(settings, spec), field=field))


def reward_options(settings: Any, spec: str) -> dict[str, Any]:
    """Returns the options of a reward.

    Args:
      settings: the method's settings.
      spec: name of the reward in the settings, ``NAME`` or ``NAME:SOURCE``.

    Returns:
      The fields of the group that is named after the reward; empty if there is no such group.
    """
    group = getattr(settings, spec.partition(":")[0], None)
    return vars(group) if group is not None and hasattr(group, "__dataclass_fields__") else {}


def _check_names(rewards: Sequence[Reward]) -> None:
    names = [name for reward in rewards for name in reward.meanings]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"config field eval.rewards: several rewards give a score {', '.join(twice)}; keep one of them")


def _enlarged(images: UInt8[np.ndarray, "b h w 3"]) -> UInt8[np.ndarray, "b H W 3"]:
    """Enlarges small images by a whole factor, so that a browser shows sharp pixels instead of blurring them."""
    factor = max(1, math.floor(96 / images.shape[1]))
    return images.repeat(factor, 1).repeat(factor, 2)

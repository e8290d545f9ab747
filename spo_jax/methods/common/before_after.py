"""Images drawn with an adapter before, during and after training: their scores, and what is shown of them."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.images import image_grid, to_uint8
from spo_jax.core.progress import stage
from spo_jax.core.statistics import paired_scores
from spo_jax.core.typing import Float, Params, UInt8
from spo_jax.core.words import counted, readable
from spo_jax.methods.common.checks import reward_options
from spo_jax.methods.common.settings import EvalSettings
from spo_jax.models.base import Pipeline
from spo_jax.models.sampler import Sampler, initial_latents
from spo_jax.rewards import load_reward
from spo_jax.rewards.base import Context, Reward, Scores
from spo_jax.rewards.common import total
from spo_jax.rewards.common.own import measured
from spo_jax.run.loop import Row
from spo_jax.run.report.images import MOST_PAIRS, ImagePair

GRID_COLUMNS = 8

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
        with stage(f"encoding {counted(len(self.prompts), 'evaluation prompt')}"):
            self.condition = pipeline.encode_prompts(self.prompts)
        self.sampler = Sampler(
            pipeline,
            steps=settings.steps,
            guidance=settings.guidance_scale,
            lora_scale=lora_scale,
            batch=min(settings.batch, settings.images),
        )
        self.image_size = pipeline.image_size
        self._drawn: tuple[int, ImageArray] | None = None
        self.rewards = rewards
        for reward in rewards:
            reward.check(self.prompts, pipeline.image_size)
        _check_names(rewards)
        self.weights = total.signed_weights(rewards, settings.reward_weights if rewards else ())
        self._total: total.Total | None = None
        self._base: tuple[ImageArray, Scores] | None = None  # what `start` draws and measures

    @property
    def meanings(self) -> dict[str, str]:
        """One phrase for each score, by name."""
        meanings = {name: text for reward in self.rewards for name, text in reward.meanings.items()}
        return meanings | ({total.NAME: total.meaning(self.weights)} if self.weights else {})

    @property
    def charts(self) -> dict[str, tuple[str, str]]:
        """Titles and hints of the curves whose values `evaluate` returns."""
        count = min(self.settings.grid_images, self.settings.images)
        charts: dict[str, list[str]] = {}
        for name, meaning in self.meanings.items():
            charts.setdefault(name.partition("/")[0], []).append(meaning)
        return {
            f"eval_{group}": (
                f"{readable(group)} of {count} evaluation images".capitalize(),
                meanings[0] if len(meanings) == 1 else "",
            )
            for group, meanings in charts.items()
        }

    def start(self, lora: Params) -> Row:
        """Draws and scores the images before training.

        Args:
          lora: the fresh adapter; the images are those of the base model, because the adapter's B is zero.

        Returns:
          The mean scores of the first images, as `evaluate` returns them.

        Raises:
          UserError: a score is not finite.
        """
        images = self.images(lora, title="images before training")
        self._drawn = (0, images)
        with stage("scoring the images"):
            scores = self.measure_base(images)
        self._base = images, scores
        return _row({name: values[: self.settings.grid_images] for name, values in scores.items()})

    def images(self, lora: Params, count: int | None = None, title: str = "") -> ImageArray:
        """Draws one image per prompt.

        Args:
          lora: the adapter.
          count: number of prompts to use, from the first on; None uses all.
          title: title of a progress bar; empty for none.

        Returns:
          Images near [-1, 1], not clipped.
        """
        count = len(self.prompts) if count is None else min(count, len(self.prompts))
        return self.sampler.draw(self.condition, self.latents[:count], lora, title)

    def images_at(self, number: int, lora: Params, count: int) -> ImageArray:
        """Draws the first images as `images`, unless they were drawn for this batch already.

        The evaluation and the guard look at the same batches, and each batch's images are drawn once for both.

        Args:
          number: number of batches finished so far.
          lora: the adapter after them.
          count: number of prompts, from the first on.
        """
        count = min(count, len(self.prompts))
        if self._drawn is None or self._drawn[0] != number or len(self._drawn[1]) < count:
            least = self.settings.guard_images if self.settings.guard != "off" else 0
            self._drawn = (number, self.images(lora, max(count, least)))
        return self._drawn[1][:count]

    def measure_base(self, images: ImageArray) -> Scores:
        """Scores the base model's images as `measure`, and fixes by them how scores are normalised in the total.

        It has to be called before any other images are scored.

        Raises:
          UserError: a score is not finite.
        """
        self._total = None
        scores = self.measure(images)
        if self.weights:
            self._total = total.fit_total(self.weights, scores)
            scores[total.NAME] = self._total(scores)
        return scores

    def measure(self, images: ImageArray) -> Scores:
        """Scores what `images` returned for all prompts; returns the scores by name, the total among them.

        Raises:
          UserError: a score is not finite.
        """
        scores = self._scores(images)
        for name, values in scores.items():
            if not np.isfinite(values).all():
                cause = "check what it computes" if np.isfinite(images).all() else "check eval.guidance_scale and dtype"
                raise UserError(f"{name} of the evaluation images is not finite: {cause}")
        return scores

    def compare(self, before: Scores, after: Scores) -> dict[str, dict[str, Any]]:
        """Compares two measurements of all prompts as `paired_scores`, and adds the name of each score's ``reward``.

        That of the total, which is of several rewards, is empty.
        """
        lower = [name for reward in self.rewards for name in reward.lower_is_better]
        scores = paired_scores(before, after, self.meanings, lower)
        for spec, reward in zip(self.settings.reward_names, self.rewards, strict=False):
            for name in reward.meanings.keys() & scores.keys():
                scores[name]["reward"] = spec
        if total.NAME in scores:
            scores[total.NAME].setdefault("reward", "")
        return scores

    def _scores(self, images: ImageArray) -> Scores:
        scores = {}
        for reward in self.rewards:
            scores |= measured(reward, images, self.prompts[: len(images)])
        if self._total is not None:
            scores[total.NAME] = self._total(scores)
        return scores

    def evaluate(self, number: int, lora: Params) -> tuple[Row, UInt8[np.ndarray, "H W 3"]]:
        """Draws and scores the first images during training.

        Args:
          number: number of batches finished so far.
          lora: the adapter after them.

        Returns:
          The mean scores as ``eval_NAME``, which may not be finite, and the images in a grid.
        """
        images = self.images_at(number, lora, self.settings.grid_images)
        return _row(self._scores(images)), image_grid(to_uint8(images), GRID_COLUMNS)

    def finish(self, lora: Params) -> tuple[dict[str, Any], list[ImagePair]]:
        """Draws and scores the images after training, and compares them with those of `start`.

        Returns:
          The entries for ``summary.json`` (number of images; means, paired changes and their standard errors, and which
          reward each score is of), and the first images before and after.

        Raises:
          UserError: a score is not finite.
          ValueError: `start` was not called.
        """
        if self._base is None:
            raise ValueError("there is nothing to compare with: BeforeAfter.start comes before BeforeAfter.finish")
        before, scores_before = self._base
        after = self.images(lora, title="images after training")
        with stage("scoring the images"):
            scores_after = self.measure(after)
        scores = self.compare(scores_before, scores_after)
        first = (to_uint8(images[:MOST_PAIRS]) for images in (before, after))
        pairs = [ImagePair(*pair) for pair in zip(self.prompts, *first, strict=False)]
        return {"images": len(self.prompts), "scores": scores}, pairs


def load_rewards(
    names: Sequence[str],
    pipeline: Pipeline,
    mesh: Mesh | None,
    options: Any,
    shared: dict[str, Reward],
    field: str = "eval.rewards",
) -> list[Reward]:
    """Loads rewards that score images.

    Args:
      names: their names, as `spo_jax.rewards.load_reward` takes them.
      pipeline: the model whose images are scored.
      mesh: mesh on which the rewards' weights are placed.
      options: the method's settings; a reward's options are the fields of the group that is named after it.
      shared: rewards that are loaded already, by their names in the settings; newly loaded ones are added.
      field: config field that names them, for messages.

    Raises:
      UserError: a reward cannot be loaded.
    """
    rewards = []
    for spec in names:
        if spec not in shared:
            group = reward_options(options, spec)
            shared[spec] = load_reward(spec, Context(pipeline.kind, pipeline.dtype, mesh, group, field=field))
        rewards.append(shared[spec])
    return rewards


def _check_names(rewards: Sequence[Reward]) -> None:
    names = [name for reward in rewards for name in reward.meanings]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"config field eval.rewards: several rewards give a score {', '.join(twice)}; keep one of them")


def _row(scores: Scores) -> Row:
    return {f"eval_{name}": float(np.mean(values, dtype=np.float64)) for name, values in scores.items()}

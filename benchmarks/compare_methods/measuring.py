"""What a checkpoint is worth: images of common noise, drawn by one compiled sampler for all, and their truth."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.compare_methods.contestants import RANK
from benchmarks.compare_methods.plan import GUIDANCE, STEPS, Plan
from spo_jax.core.typing import Float, Params
from spo_jax.models import open_pipeline
from spo_jax.models.base import Pipeline
from spo_jax.models.sampler import Sampler, initial_latents
from spo_jax.nn.lora import init_lora
from spo_jax.rewards import load_reward
from spo_jax.rewards.base import Context
from spo_jax.rewards.common.own import measured
from spo_jax.weights.digest import weights_digest

BATCH = 50  # images drawn at a time
SEED = 20_000  # of the noise of held-out images; that of the guard's and of votes follows
_BLOCK = 4  # pixels of a square over which images are averaged before they are compared

Images = Float[np.ndarray, "b H W 3"]


class Measurer:
    """Draws and measures images of adapters of rank `RANK`.

    Args:
      plan: how many images there are.
      model: the text-to-image model.
      rewards: rewards that know the truth.
      held_out: the held-out prompts.
      train: the training prompts.

    Attributes:
      fresh: an adapter that changes nothing.
      digest: digest of the model's weights.
    """

    def __init__(self, plan: Plan, model: str, rewards: Sequence[str], held_out: Sequence[str], train: Sequence[str]):
        self._plan = plan
        self._prompts = {"held_out": list(held_out), "train": list(train)}
        self._pipeline = open_pipeline(model)
        self._sampler = Sampler(self._pipeline, steps=STEPS, guidance=GUIDANCE, batch=BATCH)
        context = Context(self._pipeline.kind, self._pipeline.dtype)
        self._rewards = [load_reward(reward, context) for reward in rewards]
        self.fresh = fresh_adapter(self._pipeline)
        self.digest = weights_digest(self._pipeline.params)

    def point(self, lora: Params) -> dict[str, Any]:
        """Measures an adapter on held-out prompts.

        Returns:
          JSON values: ``scores`` and ``guard``, scores by name with a row for each prompt, of the images that are
          reported and of those by which the guard chooses; and the ``diversity`` of each prompt.
        """
        plan = self._plan
        reported = self._draw("held_out", plan.per_prompt, SEED, lora)
        chosen_by = self._draw("held_out", plan.guard_per_prompt, SEED + 1, lora)
        return {
            "scores": self._scores("held_out", plan.per_prompt, reported),
            "guard": self._scores("held_out", plan.guard_per_prompt, chosen_by),
            "diversity": diversity(reported, plan.per_prompt),
        }

    def voted_on(self, lora: Params) -> tuple[Images, list[str]]:
        """Returns the images of training prompts that are voted on, and their prompts."""
        count = self._plan.votes_per_prompt
        return self._draw("train", count, SEED + 2, lora), repeated(self._prompts["train"], count)

    def _draw(self, split: str, per_prompt: int, seed: int, lora: Params) -> Images:
        prompts = repeated(self._prompts[split], per_prompt)
        latents = initial_latents(seed, len(prompts), self._pipeline.latent_shape)
        return self._sampler(prompts, latents, lora)

    def _scores(self, split: str, per_prompt: int, images: Images) -> dict[str, list[list[float]]]:
        prompts = repeated(self._prompts[split], per_prompt)
        return {
            name: np.round(np.asarray(values, np.float64).reshape(-1, per_prompt), 6).tolist()
            for reward in self._rewards
            for name, values in measured(reward, images, prompts).items()
        }


def repeated(prompts: Sequence[str], times: int) -> list[str]:
    """Returns each prompt so many times, the same ones beside each other."""
    return [prompt for prompt in prompts for _ in range(times)]


def fresh_adapter(pipeline: Pipeline) -> Params:
    """Returns an adapter that changes nothing: its second matrices are zero."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), pipeline.params[pipeline.TRAINED])
    return init_lora(jax.random.key(0), shapes, RANK)


def diversity(images: Images, per_prompt: int) -> list[float]:
    """Returns the mean distance between two images of each prompt: the root of the mean square over blocks of pixels.

    Blocks are averaged first, so that grain, which most methods remove, is no diversity.
    """
    count, height, width, channels = images.shape
    blocks = np.clip(images, -1, 1).reshape(count, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK, channels)
    features = blocks.mean((2, 4)).reshape(count // per_prompt, per_prompt, -1)
    pairs = list(itertools.combinations(range(per_prompt), 2))
    if not pairs:
        return [0.0] * len(features)
    first, second = np.asarray(pairs).T
    distances = np.sqrt(np.square(features[:, first] - features[:, second]).mean(2))
    return np.round(distances.mean(1).astype(np.float64), 6).tolist()

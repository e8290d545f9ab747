"""The images that people judge: which model draws each, with which settings, and the drawing, which can be continued.

Images lie in the file in the order of drawing, a recipe after the other, so that a recipe is a compiled program with
full batches.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spo_jax.core.images import to_uint8
from spo_jax.core.progress import bar
from spo_jax.core.typing import Float, Int, UInt8
from spo_jax.data.array_file import ArrayFile, Writer
from spo_jax.models.base import Pipeline
from spo_jax.models.sampler import Sampler, latents_of
from spo_jax.toy import world

BATCH = 50
STEPS = (8, 12, 20)
GUIDANCE = (2.0, 3.5, 5.0, 7.5, 10.0)
EARLIER = 0.3  # share of images by the earlier checkpoint


class Recipe(NamedTuple):
    """How an image is drawn: by ``model`` or by ``earlier``, in so many steps with so much guidance."""

    by: str
    steps: int
    guidance: float


RECIPES = tuple(itertools.starmap(Recipe, itertools.product(("model", "earlier"), STEPS, GUIDANCE)))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is drawn for one split.

    Attributes:
      prompts: one per pair.
      recipe: indices into `RECIPES` of both images of each pair.
      seed: seed of the initial latents; image i of pair p has the noise of row 2p + i.
    """

    prompts: tuple[str, ...]
    recipe: Int[np.ndarray, "n 2"]
    seed: int

    @property
    def order(self) -> Int[np.ndarray, " m"]:
        """The numbers 2p + i of the images, in the order in which they are drawn."""
        return np.argsort(self.recipe.reshape(-1), kind="stable")

    def prompts_of(self, rows: Int[np.ndarray, " b"]) -> list[str]:
        """Returns the prompts of images."""
        return [self.prompts[row // 2] for row in rows]


def make_plan(seed: int, split: int, pairs: int, prompts: Sequence[str]) -> Plan:
    """Draws prompts and recipes; those of the first pairs do not depend on the number of pairs.

    Args:
      seed: seed of the data.
      split: number of the split.
      pairs: number of pairs.
      prompts: prompts from which one is chosen for each pair.
    """
    chances = [(EARLIER if recipe.by == "earlier" else 1 - EARLIER) * 2 / len(RECIPES) for recipe in RECIPES]
    chosen = np.random.default_rng((seed, split, 0)).choice(prompts, pairs)
    recipe = np.random.default_rng((seed, split, 1)).choice(len(RECIPES), (pairs, 2), p=chances)
    noise = np.random.SeedSequence((seed, split, 2)).generate_state(1)[0]
    return Plan(tuple(map(str, chosen)), recipe, int(noise))


def draw_images(
    file: Path, plan: Plan, models: Mapping[str, Pipeline], bound: Mapping[str, str | int], title: str
) -> UInt8[np.ndarray, "n 2 h w 3"]:
    """Draws the images that ``file`` does not have yet, and returns all of them.

    Args:
      file: the array of images, ending in ``.npy``.
      plan: what is drawn.
      models: the pipelines, by the names of `Recipe`.
      bound: what determines the images besides the plan's seed: digests of the models, for example.
      title: title of the progress bar.

    Raises:
      UserError: ``file`` holds other images or cannot be written.
    """
    order = plan.order
    recipes = plan.recipe.reshape(-1)[order]
    shape = (len(order), world.SIZE, world.SIZE, 3)
    array = ArrayFile(file, shape, np.dtype(np.uint8), {**bound, "recipes": str(RECIPES), "noise": plan.seed})
    with Writer(array, flush_every=1) as writer, bar(title, len(order), "image") as shown:
        shown.update(writer.done)
        for (by, steps), group in itertools.groupby(RECIPES, lambda recipe: (recipe.by, recipe.steps)):
            # One program for all guidance scales.
            wanted = [(recipe, np.flatnonzero(recipes == RECIPES.index(recipe))) for recipe in group]
            if all(not len(places) or places[-1] < writer.done for _, places in wanted):
                continue
            sampler = Sampler(models[by], steps=steps, guidance=0.0, batch=BATCH)
            for recipe, places in wanted:
                rows = order[places[places >= writer.done]]
                for images in _drawn(sampler, plan, rows, recipe.guidance):
                    writer.append(to_uint8(images))
                    shown.update(len(images))
    drawn = np.empty(shape, np.uint8)
    drawn[order] = array.open()
    return drawn.reshape(-1, 2, *shape[1:])


def _drawn(sampler: Sampler, plan: Plan, rows: Int[np.ndarray, " b"], guidance: float) -> Iterator[np.ndarray]:
    """Yields the images of these rows, batch by batch."""

    def latents(numbers: Int[np.ndarray, " c"]) -> Float[np.ndarray, "c h w k"]:
        return latents_of(plan.seed, rows[numbers], sampler.latent_shape)

    if len(rows):
        yield from sampler.stream(plan.prompts_of(rows), latents, guidance=guidance)

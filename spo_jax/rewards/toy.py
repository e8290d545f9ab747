"""The truth of the toy world in closed form: how well an image is drawn, and whether it shows its prompt.

``toy@terms`` says what an aesthetic is made of: the terms that are multiplied, and the layout, which is no part of it.
"""

from collections.abc import Sequence

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Float
from spo_jax.rewards.common.protocol import Context, Scores
from spo_jax.toy import truth

ON_HOST = True  # so it cannot judge inside a rollout
VARIANTS = {"terms": "the terms of the aesthetic, and the layout"}


class ToyTruth:
    """Measures images of the toy world and their captions, on the host."""

    meanings = truth.MEANINGS
    lower_is_better = ("out_of_range",)

    def check(self, prompts: Sequence[str], size: tuple[int, int]) -> None:
        """Raises a `UserError` unless the prompts are captions of the toy world and the images have its size."""
        truth.check(prompts, size)

    def measure(self, images: Float[np.ndarray, "b h w 3"], prompts: Sequence[str]) -> Scores:
        """Measures images that are not clipped; returns the scores by the names in `meanings`."""
        return truth.measure(images, prompts)


class ToyTerms(ToyTruth):
    """Measures the terms of the aesthetic and the layout of images of the toy world, on the host."""

    meanings = truth.TERM_MEANINGS
    lower_is_better = ()

    def measure(self, images: Float[np.ndarray, "b h w 3"], prompts: Sequence[str]) -> Scores:
        """Measures images that are not clipped; returns the scores by the names in `meanings`."""
        del prompts  # What an image shows is taken as meant, as in the aesthetic that is reported.
        return truth.measure_terms(images)


def load(source: str, context: Context) -> ToyTruth:
    """Returns the reward, which has no weights and depends on the variant alone.

    Raises:
      UserError: a source is named.
    """
    check(source, context)
    return ToyTerms() if context.variant == "terms" else ToyTruth()


def check(source: str, context: Context) -> None:
    """Refuses a source, because there is nothing to read."""
    if source:
        raise UserError(f"{context.where} = 'toy:{source}': the reward toy reads no weights; expected 'toy'")

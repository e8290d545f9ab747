"""The truth of the toy world, in closed form: how well an image is drawn, and whether it shows its prompt."""

from collections.abc import Sequence

import numpy as np

from spo_jax.core.typing import Float
from spo_jax.rewards.base import Context, Scores
from spo_jax.toy import truth


class ToyTruth:
    """Computed on the host, from images of the toy's size and captions of its world."""

    meanings = truth.MEANINGS
    lower_is_better = ("out_of_range",)

    def check(self, prompts: Sequence[str], size: tuple[int, int]) -> None:
        """Raises a `UserError` unless the prompts are the toy's captions and the images of its size."""
        truth.check(prompts, size)

    def measure(self, images: Float[np.ndarray, "b h w 3"], prompts: Sequence[str]) -> Scores:
        """Every truth per image, by the names of `meanings`; images are not clipped."""
        return truth.measure(images, prompts)


def load(source: str, context: Context) -> ToyTruth:
    """The reward; there are no weights."""
    del source, context
    return ToyTruth()

"""Preference pairs of the world of scenes, drawn rather than collected.

The pictures come from a wider range than the diffusion model's training data: too vivid, over-sharpened and
wrong-prompt ones among them, for a judge that has never seen "too much" would reward it without end.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from spo_jax.core.errors import UserError
from spo_jax.core.images import to_uint8
from spo_jax.core.typing import Float, UInt8
from spo_jax.data.preferences.format.check import RawPair
from spo_jax.toy import world

TIE = 0.04  # aesthetics closer than this look the same
VIVID = -0.45  # dullness of the most over-saturated pictures
WRONG_PROMPT, SHARPENED = 0.12, 0.25  # shares of pictures
PROMPTS = {"train": world.TRAIN_PROMPTS, "validation_unique": world.HELD_OUT_PROMPTS}
_BLOCK = 500  # pairs drawn at a time

# (pictures [b h w 3] in [-1, 1], prompts) -> how good each is [b].
Aesthetic = Callable[[np.ndarray, Sequence[str]], np.ndarray]


class DrawnPairs(NamedTuple):
    """Pairs in memory: pictures in [-1, 1] (float16), prompts, labels (1, 0), (0, 1) or (0.5, 0.5)."""

    images: Float[np.ndarray, "n 2 h w 3"]
    prompts: Sequence[str]
    labels: Float[np.ndarray, "n 2"]


def draw_pairs(seed: int | Sequence[int], count: int, prompts: Sequence[str], aesthetic: Aesthetic) -> DrawnPairs:
    """``count`` pairs of pictures of the same prompt, labelled by the ground truth, ties included.

    Args:
      aesthetic: the ground truth (`spo_jax.toy.truth.aesthetic`); given, for rewards are above data.
    """
    rng = np.random.default_rng(seed)
    chosen = [str(prompt) for prompt in rng.choice(prompts, count)]
    both = [_pictures(rng, chosen) for _ in range(2)]
    difference = np.subtract(*(aesthetic(images, chosen) for images in both))
    first = np.where(np.abs(difference) < TIE, 0.5, (difference > 0)).astype(np.float32)
    return DrawnPairs(np.stack(both, 1).astype(np.float16), chosen, np.stack([first, 1 - first], 1))


def _pictures(rng: np.random.Generator, prompts: Sequence[str]) -> Float[np.ndarray, "n h w 3"]:
    drawn = np.where(rng.random(len(prompts)) < WRONG_PROMPT, rng.choice(world.PROMPTS, len(prompts)), prompts)
    factors = world.sample_factors(rng, len(prompts))
    factors["dullness"] = rng.uniform(VIVID, world.FACTORS["dullness"][1], len(prompts)).astype(np.float32)
    images = world.render(rng, list(drawn), factors)
    smooth = sum(np.roll(images, (dy, dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) / 9
    amount = np.where(rng.random(len(prompts)) < SHARPENED, rng.uniform(0, 3, len(prompts)), 0).astype(np.float32)
    return np.clip(images + amount[:, None, None, None] * (images - smooth), -1, 1)


class Scenes:
    """A `Source`: ``train`` of the training prompts, ``validation_unique`` of the held-out ones, drawn as asked for."""

    def __init__(self, pairs: dict[str, int], seed: int, aesthetic: Aesthetic):
        """
        Args:
          pairs: of each split.

        Raises:
          UserError: a split of another name, or without pairs.
        """
        for split, count in pairs.items():
            if count < 1:
                raise UserError(f"{count} pairs of scenes for {split}: expected at least 1")
        self._pairs, self._seed, self._aesthetic = pairs, seed, aesthetic

    def splits(self) -> tuple[str, ...]:
        """Both."""
        return tuple(self._pairs)

    def usual_splits(self) -> tuple[str, ...]:
        """Both."""
        return self.splits()

    def made_from(self, split: str) -> dict[str, Any]:
        """Seed and number of pairs."""
        return {"dataset": "scenes", "pairs": self._pairs[split], "seed": self._seed}

    def count(self, split: str) -> int:
        """As many as were asked for."""
        return self._pairs[split]

    def rows(self, split: str) -> Iterator[RawPair]:
        """Drawn block by block, so the first pairs do not depend on how many there are; pictures are PNG files."""
        for start in range(0, self._pairs[split], _BLOCK):
            seed = (self._seed, list(PROMPTS).index(split), start // _BLOCK)
            drawn = draw_pairs(seed, _BLOCK, PROMPTS[split], self._aesthetic)
            pixels = to_uint8(drawn.images)
            for offset in range(min(_BLOCK, self._pairs[split] - start)):
                first, second = (_png(picture) for picture in pixels[offset])
                labels = tuple(drawn.labels[offset].tolist())
                yield RawPair(f"pair {start + offset}", (first, second), drawn.prompts[offset], labels)


def _png(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()

"""Preference pairs of the toy world, which are drawn rather than collected, and labelled by its truth.

The images come from a wider range than the diffusion model's training data: some are too vivid, some are over-sharpened
and some show another prompt. A judge that has never seen "too much" would reward it without limit.
"""

import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from spo_jax.core.config import seed_setting, setting
from spo_jax.core.images import to_uint8
from spo_jax.core.typing import Float, UInt8
from spo_jax.data.preferences.check import RawPair
from spo_jax.data.preferences.sources import SourceOptions
from spo_jax.toy import truth, world

TIE = 0.03  # two images whose aesthetics differ by less are a tie
VIVID = -0.45  # dullness of the most over-saturated images
WRONG_PROMPT = 0.12  # share of images that show another prompt
SHARPENED = 0.25  # share of images that are sharpened
PROMPTS = {"train": world.TRAIN_PROMPTS, "validation_unique": world.HELD_OUT_PROMPTS}
_BLOCK = 500  # number of pairs drawn at a time


@dataclasses.dataclass(frozen=True)
class Options(SourceOptions):
    """Sets the number of pairs to draw, and their seed."""

    pairs: int = setting(100_000, "Number of training pairs to draw (toy).", at_least=1, at_most=10**7)
    held_out_pairs: int = setting(2000, "Number of held-out pairs to draw (toy).", at_least=1, at_most=10**7)
    seed: int = seed_setting(0, "Draw the pairs from this seed (toy).")


def open_source(options: Options, splits: Sequence[str], fetch: Callable[..., Path]) -> "ToyPairs":
    """Opens the splits ``train`` and ``validation_unique``, of which nothing is drawn yet."""
    del splits, fetch
    return ToyPairs({"train": options.pairs, "validation_unique": options.held_out_pairs}, options.seed)


class DrawnPairs(NamedTuple):
    """Pairs in memory.

    Attributes:
      images: two images per pair in [-1, 1], as float16.
      prompts: one caption per pair.
      labels: one row per pair: (1, 0), (0, 1) or (0.5, 0.5).
    """

    images: Float[np.ndarray, "n 2 h w 3"]
    prompts: Sequence[str]
    labels: Float[np.ndarray, "n 2"]


def draw_pairs(seed: int | Sequence[int], count: int, prompts: Sequence[str]) -> DrawnPairs:
    """Draws ``count`` pairs of images for the same prompt, labelled by the truth, including ties.

    Args:
      seed: seed of everything that is drawn.
      count: number of pairs.
      prompts: prompts from which one is chosen for each pair.
    """
    rng = np.random.default_rng(seed)
    chosen = [str(prompt) for prompt in rng.choice(prompts, count)]
    first = _images(rng, chosen)
    second = _images(rng, chosen)
    difference = np.subtract(truth.aesthetic(first, chosen), truth.aesthetic(second, chosen))
    label = np.where(np.abs(difference) < TIE, 0.5, (difference > 0)).astype(np.float32)
    return DrawnPairs(
        images=np.stack([first, second], 1).astype(np.float16),  # [n h w 3], twice -> [n 2 h w 3]
        prompts=chosen,
        labels=np.stack([label, 1 - label], 1),  # [n], twice -> [n 2]
    )


def _images(rng: np.random.Generator, prompts: Sequence[str]) -> Float[np.ndarray, "n h w 3"]:
    """Draws one image per prompt, of a wider range of quality than the diffusion model's training data."""
    # Choose the prompt that is shown, which may be another one, and how well it is drawn.
    shown = np.where(rng.random(len(prompts)) < WRONG_PROMPT, rng.choice(world.PROMPTS, len(prompts)), prompts)
    factors = world.sample_factors(rng, len(prompts))
    factors["dullness"] = rng.uniform(VIVID, world.FACTORS["dullness"][1], len(prompts)).astype(np.float32)
    images = world.render(rng, list(shown), factors)
    # Sharpen some of the images by an unsharp mask.
    smooth = sum(np.roll(images, (dy, dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) / 9
    amount = np.where(rng.random(len(prompts)) < SHARPENED, rng.uniform(0, 3, len(prompts)), 0).astype(np.float32)
    return np.clip(images + amount[:, None, None, None] * (images - smooth), -1, 1)


class ToyPairs:
    """A `spo_jax.data.preferences.check.Source` with pairs for the training prompts and for the held-out prompts.

    Args:
      pairs: number of pairs in each split.
      seed: seed of everything that is drawn.
    """

    def __init__(self, pairs: Mapping[str, int], seed: int):
        self._pairs = dict(pairs)
        self._seed = seed

    def splits(self) -> tuple[str, ...]:
        """Returns the names of the splits."""
        return tuple(self._pairs)

    def usual_splits(self) -> tuple[str, ...]:
        """Returns all splits."""
        return self.splits()

    def made_from(self, split: str) -> dict[str, Any]:
        """Returns the seed and the number of pairs."""
        return {"dataset": "toy", "pairs": self._pairs[split], "seed": self._seed}

    def count(self, split: str) -> int:
        """Returns the number of pairs."""
        return self._pairs[split]

    def rows(self, split: str) -> Iterator[RawPair]:
        """Yields the pairs with their images as PNG files.

        They are drawn block by block, so that the first ones do not depend on the number of pairs.
        """
        for start in range(0, self._pairs[split], _BLOCK):
            seed = (self._seed, list(PROMPTS).index(split), start // _BLOCK)
            drawn = draw_pairs(seed, _BLOCK, PROMPTS[split])
            pixels = to_uint8(drawn.images)
            for offset in range(min(_BLOCK, self._pairs[split] - start)):
                first, second = pixels[offset]
                labels = tuple(drawn.labels[offset].tolist())
                yield RawPair(
                    where=f"pair {start + offset}",
                    images=(as_png(first), as_png(second)),
                    caption=drawn.prompts[offset],
                    labels=labels,
                )


def as_png(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encodes an image as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()

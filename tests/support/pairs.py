"""Preference pairs in memory, for tests that do not need a prepared folder."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image


def encoded(seed: int, height: int, width: int, form: str = "PNG") -> bytes:
    """Encodes an image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


@dataclasses.dataclass
class MemoryPairs:
    """The part of `spo_jax.data.preferences.format.Preferences` that loading and PickScore use."""

    files: list[tuple[bytes, bytes]]
    digest: str = "in memory"
    prompts: tuple[str, ...] = ()
    prompt: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))

    def __len__(self) -> int:
        return len(self.files)

    def images(self, row: int) -> tuple[bytes, bytes]:
        return self.files[row]


def noise_pairs(count: int, height: int = 24, width: int = 31, prompts: Sequence[str] = ("",)) -> MemoryPairs:
    """Makes pairs of noise, no two of them alike, that take their captions in turn."""
    files = [(encoded(2 * row, height, width), encoded(2 * row + 1, height, width)) for row in range(count)]
    return MemoryPairs(files, prompts=tuple(prompts), prompt=np.arange(count, dtype=np.int32) % len(prompts))

"""Preference pairs of striped images: a source of pairs that is not part of the package."""

import dataclasses
import io

import numpy as np
from PIL import Image

from spo_jax.core.config import setting
from spo_jax.data.preferences.check import RawPair
from spo_jax.data.preferences.sources import SourceOptions


@dataclasses.dataclass(frozen=True)
class Options(SourceOptions):
    """Flags of ``python -m spo_jax.prepare``."""

    stripes: int = setting(4, "Number of pairs.", at_least=1)


class Stripes:
    """Images whose stripes are a pixel wider from pair to pair; the wider one of two is preferred."""

    def __init__(self, count):
        self._count = count

    def splits(self):
        """One split."""
        return ("train",)

    usual_splits = splits

    def count(self, split):
        """The number of pairs."""
        return self._count

    def rows(self, split):
        """All pairs."""
        for width in range(1, self._count + 1):
            yield RawPair(f"pair {width}", (_stripes(width), _stripes(width + 1)), f"stripes {width}", (0, 1))

    def made_from(self, split):
        """The number of pairs."""
        return {"stripes": self._count}


def _stripes(width):
    column = np.arange(16) // width % 2 * 255
    stream = io.BytesIO()
    Image.fromarray(np.broadcast_to(column[None, :, None], (16, 16, 3)).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def open_source(options, splits, fetch):
    """The source of the options."""
    return Stripes(options.stripes)

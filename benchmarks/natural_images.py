"""Images whose statistics are those of photographs: photographs of installed packages, and dead leaves."""

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from spo_jax.core.typing import Float, UInt8

# Photographs that packages carry for their own examples and tests; packages that are not installed are left out.
_PHOTOGRAPHS = (
    "gradio/media_assets/images/groot.jpeg",
    "gradio/test_data/cheetah2.jpg",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
    "skimage/data/astronaut.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/ihc.png",
    "skimage/data/retina.jpg",
)
_LARGEST = 1 / 4  # radius of a leaf, as a share of the image's side
_SMALLEST = 1.0  # radius of a leaf in pixels
_SUPERSAMPLING = 2
_ENOUGH = 0.99  # share of the pixels that leaves cover; what is left is grey


def photographs(size: int) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
    """Returns photographs by name as squares of ``size`` pixels; smaller ones are left out, because none is enlarged.

    The middle square is reduced with Pillow's Lanczos filter.
    """
    images = {}
    for name in _PHOTOGRAPHS:
        package, _, file = name.partition("/")
        spec = importlib.util.find_spec(package)
        path = Path(spec.submodule_search_locations[0]) / file if spec else Path(file)
        if not path.is_file():
            continue
        with Image.open(path) as image:
            side = min(image.size)
            if side < size:
                continue
            left, top = ((length - side) // 2 for length in image.size)
            square = image.convert("RGB").crop((left, top, left + side, top + side))
        images[name] = np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))
    return images


def dead_leaves(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "h w 3"]:
    """Draws discs that hide each other, with radii of density r^-3: a model of the edges and spectra of photographs.

    There is as much of every size down to single pixels, and the edges are as sharp as pixels allow, so this is the end
    of much detail, such as foliage. See Lee, Mumford and Huang, "Occlusion models for natural images"
    (2001).

    Args:
      rng: source of places, radii and colours.
      size: height and width of the image.
    """
    side = size * _SUPERSAMPLING
    image = np.full((side, side, 3), 127.5, np.float32)
    free = np.ones((side, side), bool)
    while free.mean() > 1 - _ENOUGH:
        for x, y, radius, colour in _leaves(rng, side, 2000):
            rows, columns = (slice(max(int(c - radius), 0), int(c + radius) + 2) for c in (y, x))
            grid = np.ogrid[rows.start : min(rows.stop, side), columns.start : min(columns.stop, side)]
            inside = ((grid[0] - y) ** 2 + (grid[1] - x) ** 2 <= radius**2) & free[rows, columns]
            image[rows, columns][inside] = colour
            free[rows, columns] &= ~inside
    small = image.reshape(size, _SUPERSAMPLING, size, _SUPERSAMPLING, 3).mean((1, 3))
    return np.round(small).astype(np.uint8)


def _leaves(rng: np.random.Generator, side: int, count: int) -> zip:
    """Draws places, radii and colours of leaves, those in front first."""
    smallest, largest = _SMALLEST * _SUPERSAMPLING, _LARGEST * side
    share: Float[np.ndarray, " n"] = rng.uniform(size=count)
    radius = (smallest**-2 - share * (smallest**-2 - largest**-2)) ** -0.5  # the inverse of the distribution
    place = rng.uniform(-radius, side + radius, (2, count))
    # Channels of photographs go together, so that most leaves are nearly grey.
    colours = np.clip(rng.uniform(30, 225, (count, 1)) + rng.normal(0, 20, (count, 3)), 0, 255)
    return zip(*place, radius, colours, strict=True)

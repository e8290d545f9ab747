"""Takes images of the toy world apart: into the background, the colour of the shape, and what the shape covers."""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from spo_jax.toy import world

_CHROMA_FLOOR = 0.12  # chroma below which an image shows nothing coloured
_LAYERS = 3  # pixels by which masks are shrunk
_GREYLESS = np.eye(3, dtype=np.float32) - np.float32(1 / 3)
AXIS = np.arange(world.SIZE, dtype=np.float32) - (world.SIZE - 1) / 2  # of pixel centres, from the middle of the image


class Parts(NamedTuple):
    """The parts of images, from which every measure starts.

    Attributes:
      cover: share of each pixel that the shape covers: 0 is background, 1 is shape, and edges that ring exceed both.
      background: RGB of the smooth background, under the shape as well.
      colour: mean RGB of the shape's interior.
      inside: whether each pixel belongs to the shape.
    """

    cover: Float[np.ndarray, "b h w"]
    background: Float[np.ndarray, "b h w 3"]
    colour: Float[np.ndarray, "b 3"]
    inside: Bool[np.ndarray, "b h w"]


def chroma_of(colours: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
    """Removes the grey part of colours."""
    return colours @ _GREYLESS


def square(values: Float[np.ndarray, "... c"]) -> Float[np.ndarray, "..."]:
    """Returns the squared length over the last axis, where this is several times faster than numpy's reductions."""
    return np.einsum("...c,...c->...", values, values)


def _shrink(mask: Bool[np.ndarray, "b h w"], square: bool) -> Bool[np.ndarray, "b h w"]:
    """Drops the pixels with a neighbour outside the mask; beyond the image, the mask continues as at the border.

    Args:
      mask: the masks to shrink.
      square: whether diagonal neighbours count too.
    """
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)), mode="edge")
    height, width = mask.shape[1:]
    steps = [(i, j) for i in range(3) for j in range(3) if square or i == 1 or j == 1]
    return np.logical_and.reduce([padded[:, i : i + height, j : j + width] for i, j in steps])


def layers_of(mask: Bool[np.ndarray, "b h w"]) -> list[Bool[np.ndarray, "b h w"]]:
    """Returns the mask, followed by the mask shrunk by 1, 2, ... pixels.

    Alternating between crosses and squares as neighbourhoods makes octagons.
    """
    layers = [mask]
    for step in range(_LAYERS):
        layers.append(_shrink(layers[-1], square=bool(step % 2)))
    return layers


def smoothed(cover: Float[np.ndarray, "b h w"]) -> Float[np.ndarray, "b h w"]:
    """Applies a [1 2 1] / 4 filter twice along both axes, which is a Gaussian of one pixel."""
    height, width = cover.shape[1:]
    padded = np.pad(cover, ((0, 0), (2, 2), (2, 2)), mode="edge")
    taps = np.float32([1, 4, 6, 4, 1]) / 16
    rows = sum(tap * padded[:, i : i + height] for i, tap in enumerate(taps))
    return sum(tap * rows[:, :, i : i + width] for i, tap in enumerate(taps))


@functools.cache
def _quadratic() -> Float[np.ndarray, "p 6"]:
    """Returns the terms of a quadratic of the two coordinates, at every pixel."""
    axis = np.linspace(-1, 1, world.SIZE, dtype=np.float32)
    y, x = (plane.ravel() for plane in np.meshgrid(axis, axis, indexing="ij"))
    return np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=1)


def _smooth_background(images: Float[np.ndarray, "b h w 3"], outside: Bool[np.ndarray, "b h w"]) -> np.ndarray:
    """Fits a quadratic to the pixels outside the shape by least squares.

    A quadratic is the form of the toy world's own slow variation.
    """
    basis = _quadratic()  # [p 6]
    count = len(images)
    weight = outside.reshape(count, -1).astype(np.float32)  # [b h w] -> [b p]
    outer = (basis[:, :, None] * basis[:, None, :]).reshape(len(basis), -1)  # [p 36]
    normal = (weight @ outer).reshape(count, basis.shape[1], basis.shape[1])  # [b 6 6]
    moment = basis.T @ (weight[:, :, None] * images.reshape(count, -1, 3))  # [b 6 3]
    ridge = 1e-2 * np.eye(basis.shape[1], dtype=np.float32)  # for images with hardly any background
    return (basis @ np.linalg.solve(normal + ridge, moment)).reshape(images.shape)


def masked_mean(values: Float[np.ndarray, "b h w ..."], mask: Bool[np.ndarray, "b h w"]) -> np.ndarray:
    """Returns the mean of each image's values over the pixels of its mask."""
    weight = mask.astype(np.float32).reshape(len(mask), 1, -1)  # [b h w] -> [b 1 p]
    flat = values.reshape(len(mask), weight.shape[2], -1)  # [b h w ...] -> [b p c]
    mean = (weight @ flat)[:, 0] / np.maximum(weight.sum(2), 1)
    return mean.reshape(len(mask), *values.shape[3:])


def _first_mask(images: Float[np.ndarray, "b h w 3"]) -> Bool[np.ndarray, "b h w"]:
    """Finds the shape by chroma alone: backgrounds and grain are grey, so that neither disturbs it."""
    # Chroma relative to the median of the image's border.
    chroma = chroma_of(images)
    frame = np.ones((world.SIZE, world.SIZE), bool)
    frame[2:-2, 2:-2] = False
    chroma = chroma - np.median(chroma[:, frame], axis=1)[:, None, None]

    # How far each pixel goes in the direction of the mean chroma, in which strong pixels count more.
    strength = np.sqrt(square(chroma))
    direction = np.einsum("bhwc,bhw->bc", chroma, strength)
    direction /= np.maximum(np.linalg.norm(direction, axis=-1, keepdims=True), 1e-6)
    along = np.einsum("bhwc,bc->bhw", chroma, direction)

    # The level of the interior is the mean of the strongest tenth, which every shape of the toy world covers.
    flat = np.sort(along.reshape(len(images), -1), axis=1)  # [b h w] -> [b p]
    level = flat[:, -flat.shape[1] // 10 :].mean(1)
    return along > np.maximum(level, _CHROMA_FLOOR)[:, None, None] / 2


def take_apart(images: Float[np.ndarray, "b h w 3"]) -> Parts:
    """Splits images into background, colour and cover."""
    inside = _first_mask(images)
    for _ in range(2):
        # Background and colour, from pixels at some distance from the outline.
        deep = layers_of(inside)
        away = layers_of(~inside)
        background = _smooth_background(images, away[2])
        core = np.where(deep[2].any((1, 2), keepdims=True), deep[2], inside)
        colour = masked_mean(images, core)

        # The cover is the position of each pixel between the two. The contrast is blind to grain without its grey part.
        contrast = chroma_of(colour[:, None, None] - background)
        along = np.einsum("bhwc,bhwc->bhw", images - background, contrast)
        cover = along / np.maximum(square(contrast), 1e-3)
        inside = cover > 0.5
    return Parts(cover, background, colour, inside)


def as_finite(images: Float[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b h w 3"]:
    """Replaces values that are not finite and clips the rest to a wide range."""
    return np.nan_to_num(np.asarray(images, np.float32), nan=0, posinf=4, neginf=-4).clip(-4, 4)

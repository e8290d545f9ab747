"""Measures position, size, tilt and edge width of a shape, by fitting the toy world's own drawing of it to an image."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from spo_jax.toy import world

_STEPS = 3  # Gauss-Newton steps; from a start within a pixel and 3 degrees, more change nothing that is seen
_WIDTHS = (1.0, 8.0)  # limits of the edge's width in pixels
# Damping. Turning a circle changes nothing but rounding errors, so that its tilt has to be held where it starts.
_RIDGE = np.float32([1e-2, 1e-2, 1e-1, 10, 1e-2])
_LARGEST_STEP = np.float32([1.0, 1.0, 0.1, 0.1, 1.0])  # pixels, pixels, log scale, radians, pixels


class Pose(NamedTuple):
    """A fitted drawing of each image's shape.

    Attributes:
      factors: shift_x, shift_y, scale and tilt, with the meanings and units of `world.FACTORS`.
      distance: signed distance of each pixel to the fitted outline, in pixels and negative inside.
      cover: share of each pixel that the fitted drawing covers, with edges as soft as those of the image.
    """

    factors: dict[str, Float[np.ndarray, " b"]]
    distance: Float[np.ndarray, "b h w"]
    cover: Float[np.ndarray, "b h w"]


def fit_pose(
    cover: Float[np.ndarray, "b h w"], shapes: Sequence[str], start: dict[str, Float[np.ndarray, " b"]]
) -> Pose:
    """Fits shift, scale, tilt and edge width of a drawn shape to covers, by Gauss-Newton steps.

    Args:
      cover: share of each pixel that the image's shape covers.
      shapes: the name of the shape in each image.
      start: factors from which to start, within a pixel and a few degrees of the truth.

    Returns:
      The fitted drawings. An image that shows no shape has a pose without meaning.
    """
    # Start.
    cover = np.clip(cover, 0, 1)
    axis = np.arange(world.SIZE, dtype=np.float32) - (world.SIZE - 1) / 2
    factors = {name: values.astype(np.float32) for name, values in start.items()}
    width = np.full(len(cover), 2.5, np.float32)
    for _ in range(_STEPS):
        distance = world.signed_distance(shapes, factors)

        # How the drawing's cover changes with each parameter.
        down, right = np.gradient(distance, axis=(1, 2))
        x = axis - factors["shift_x"][:, None, None]
        y = axis[:, None] - factors["shift_y"][:, None, None]
        ratio = distance / width[:, None, None]
        ramp = (np.abs(ratio) < 0.5) / width[:, None, None]
        changes = [right, down, right * x + down * y - distance, down * x - right * y, ratio]
        slopes = np.stack([change * ramp for change in changes]).reshape(len(changes), len(cover), -1)  # [k b p]

        # The step that explains most of what the drawing misses.
        missing = (cover - np.clip(0.5 - ratio, 0, 1)).reshape(len(cover), -1)  # [b p]
        normal = np.einsum("kbp,lbp->bkl", slopes, slopes) + np.diag(_RIDGE)
        moment = np.einsum("kbp,bp->bk", slopes, missing)
        step = np.clip(np.linalg.solve(normal, moment[..., None])[..., 0], -_LARGEST_STEP, _LARGEST_STEP)
        factors["shift_x"] = factors["shift_x"] + step[:, 0]
        factors["shift_y"] = factors["shift_y"] + step[:, 1]
        factors["scale"] = factors["scale"] * np.exp(step[:, 2])
        factors["tilt"] = factors["tilt"] + np.rad2deg(step[:, 3])
        width = np.clip(width + step[:, 4], *_WIDTHS)
    distance = world.signed_distance(shapes, factors)
    return Pose(factors, distance, np.clip(0.5 - distance / width[:, None, None], 0, 1))

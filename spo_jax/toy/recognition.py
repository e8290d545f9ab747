"""Recognises the colour, the shape and the layout that images of the toy world show."""

import functools
from collections.abc import Collection

import numpy as np
from jaxtyping import Bool, Float, Int

from spo_jax.toy import world
from spo_jax.toy.parts import AXIS, Parts, as_finite, chroma_of, take_apart
from spo_jax.toy.pose import Pose, fit_pose

_TILTS = np.arange(-30, 31, 5, dtype=np.float32)  # degrees; the toy world tilts by 18 at most
_WINDOW = 24  # height and width of a normalised mask in samples
_EXTENT = 1.9  # half the window, in radii of a circle with the shape's area
PALETTE = np.asarray([world.PALETTE[name] for name in world.COLOURS], np.float32)


def _centroids(cover: Float[np.ndarray, "b h w"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns x and y of the centroid from the middle of the image, and the radius of a circle of the same area."""
    area = np.maximum(cover.sum((1, 2)), 4)
    return cover.sum(1) @ AXIS / area, cover.sum(2) @ AXIS / area, np.sqrt(area / np.pi)


def _normalised_masks(cover: Float[np.ndarray, "b h w"]) -> Float[np.ndarray, "b m"]:
    """Moves masks to their centroid and scales them to unit area, bilinearly, then to zero mean and unit norm."""
    # Where the window's samples lie, relative to the centroid.
    cover = np.clip(cover, 0, 1)
    centre_x, centre_y, radius = _centroids(cover)
    offsets = np.linspace(-_EXTENT, _EXTENT, _WINDOW, dtype=np.float32) * radius[:, None]

    def tent(centre: np.ndarray) -> np.ndarray:
        """Returns the bilinear weights of the pixels in each sample along one axis, [b window size]."""
        return np.maximum(0, 1 - np.abs((centre[:, None] + offsets)[:, :, None] - AXIS))

    # [b h w] -> [b window window] -> [b m]
    masks = (tent(centre_y) @ cover @ tent(centre_x).transpose(0, 2, 1)).reshape(len(cover), -1)
    masks = masks - masks.mean(1, keepdims=True)
    return masks / np.maximum(np.linalg.norm(masks, axis=1, keepdims=True), 1e-6)


@functools.cache
def _template_covers() -> Float[np.ndarray, "n h w"]:
    """Returns the cover of every shape at every tilt, in the middle and with an edge of medium softness."""
    names = [shape for shape in world.SHAPES for _ in _TILTS]
    zeros = np.zeros(len(names), np.float32)
    pose = {"shift_x": zeros, "shift_y": zeros, "scale": zeros + 10.5, "tilt": np.tile(_TILTS, len(world.SHAPES))}
    return np.clip(0.5 - world.signed_distance(names, pose) / 2.5, 0, 1)


@functools.cache
def _templates() -> Float[np.ndarray, "shapes tilts m"]:
    """Returns the normalised masks of `_template_covers`."""
    return _normalised_masks(_template_covers()).reshape(len(world.SHAPES), len(_TILTS), -1)


def tilted_likeness(parts: Parts) -> Float[np.ndarray, "b shapes tilts"]:
    """Returns the correlation of the mask with each shape at each tilt."""
    templates = _templates()
    scores = _normalised_masks(parts.cover) @ templates.reshape(-1, templates.shape[-1]).T  # [b shapes * tilts]
    return scores.reshape(len(scores), *templates.shape[:2])


def pose_of(parts: Parts, likeness: Float[np.ndarray, "b shapes tilts"], shape: Int[np.ndarray, " b"]) -> Pose:
    """Fits the drawing of a shape to each image, starting from its centroid, its area and the likest template."""
    tilt = likeness[np.arange(len(shape)), shape].argmax(1)
    x, y, radius = _centroids(np.clip(parts.cover, 0, 1))
    # The centroid of a triangle, star or moon is not where its drawing has its origin.
    off_x, off_y, template_radius = (values[shape * len(_TILTS) + tilt] for values in _centroids(_template_covers()))
    size = radius / template_radius
    upright = shape == world.SHAPES.index("circle")  # at any tilt
    start = {
        "shift_x": x - off_x * size,
        "shift_y": y - off_y * size,
        "scale": 10.5 * size,
        "tilt": np.where(upright, 0, _TILTS[tilt]),
    }
    return fit_pose(parts.cover, [world.SHAPES[index] for index in shape], start)


def hue_likeness(parts: Parts) -> Float[np.ndarray, "b colours"]:
    """Returns the cosine between the hue and that of each palette colour.

    Pulling a colour towards grey does not change it.
    """
    chroma = chroma_of(parts.colour)
    palette = chroma_of(PALETTE)
    chroma = chroma / np.maximum(np.linalg.norm(chroma, axis=1, keepdims=True), 1e-3)
    return chroma @ (palette / np.linalg.norm(palette, axis=1, keepdims=True)).T


def classify(images: Float[np.ndarray, "b h w 3"]) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
    """Recognises the colour and the shape that each image shows.

    Args:
      images: values in [-1, 1].

    Returns:
      (index into `world.COLOURS`, index into `world.SHAPES`).
    """
    parts = take_apart(as_finite(images))
    return np.argmax(hue_likeness(parts), axis=1), np.argmax(tilted_likeness(parts).max(2), axis=1)


def indices(prompts: Collection[str]) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
    """Returns the index of the colour and of the shape that each prompt names."""
    parsed = [world.parse_prompt(prompt) for prompt in prompts]
    colours = np.asarray([world.COLOURS.index(colour) for colour, _ in parsed])
    shapes = np.asarray([world.SHAPES.index(shape) for _, shape in parsed])
    return colours, shapes


def accuracy(images: Float[np.ndarray, "b h w 3"], prompts: Collection[str]) -> dict[str, Bool[np.ndarray, " b"]]:
    """Says whether each image shows what its prompt asks for.

    Returns:
      One boolean per image under each of the keys ``colour``, ``shape`` and ``all``.

    Raises:
      UserError: a prompt is not a caption of the toy world.
    """
    colour, shape = classify(images)
    wanted_colour, wanted_shape = indices(prompts)
    right = {"colour": colour == wanted_colour, "shape": shape == wanted_shape}
    return right | {"all": right["colour"] & right["shape"]}


def layout(images: Float[np.ndarray, "b h w 3"]) -> dict[str, Float[np.ndarray, " b"]]:
    """Measures position, size and tilt of the shape that each image shows.

    Args:
      images: values around [-1, 1].

    Returns:
      ``shift_x``, ``shift_y``, ``scale`` and ``tilt`` with the meanings and units of `world.FACTORS`. The tilt of a
      circle is about 0, and an image without a shape has values without meaning.
    """
    parts = take_apart(as_finite(images))
    likeness = tilted_likeness(parts)
    return pose_of(parts, likeness, likeness.max(2).argmax(1)).factors

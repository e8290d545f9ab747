"""The toy world: captioned images of one coloured shape, drawn from signed distances.

A caption names a colour and a shape, for example ``"a red star"``. Everything else is hidden and varies: the grey
background and its slow variation; the layout, which is the position, size and tilt of the shape; and the quality of the
drawing, which suffers from five flaws: soft edges, a ragged outline, an uneven surface, a grainy background and a dull
colour. A model trained on these images therefore generates better and worse ones, and preferences are about that
difference; `spo_jax.toy.truth` measures it. The module depends on numpy alone, so that data workers start quickly and
need no accelerator.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np
from jaxtyping import Float

from spo_jax.core.errors import UserError

SIZE = 32  # height and width of an image in pixels

# The colours are mid-range on purpose: a drawing can miss its colour by being too dull or by being too vivid, so that
# "more" is not always better.
PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.72, -0.66, -0.60),
    "orange": (0.80, 0.08, -0.72),
    "yellow": (0.78, 0.66, -0.62),
    "green": (-0.62, 0.42, -0.52),
    "cyan": (-0.66, 0.56, 0.66),
    "blue": (-0.66, -0.38, 0.78),
    "purple": (0.12, -0.64, 0.66),
    "pink": (0.80, -0.14, 0.44),
}
COLOURS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "moon")


def caption(colour: str, shape: str) -> str:
    """Returns the caption of a colour and a shape: ``("orange", "heart")`` -> ``"an orange heart"``."""
    article = "an" if colour[0] in "aeiou" else "a"
    return f"{article} {colour} {shape}"


PROMPTS = tuple(caption(colour, shape) for colour in COLOURS for shape in SHAPES)
# Training still shows each colour and each shape with at least five partners.
HELD_OUT_PROMPTS = (
    "a red star",
    "an orange heart",
    "a yellow circle",
    "a green moon",
    "a cyan triangle",
    "a blue cross",
    "a purple square",
    "a pink star",
    "a red heart",
    "a blue moon",
)
TRAIN_PROMPTS = tuple(prompt for prompt in PROMPTS if prompt not in HELD_OUT_PROMPTS)

# Maps each hidden factor to the range of its uniform distribution. Lengths are in pixels, angles in degrees, and image
# values in [-1, 1].
FACTORS: dict[str, tuple[float, float]] = {
    "edge_width": (1.0, 4.5),  # pixels over which an edge fades; 1 is a clean anti-aliased edge
    "dullness": (0.0, 0.65),  # share of the way from the palette colour to grey
    "raggedness": (0.0, 0.5),  # standard deviation of the outline's displacement in pixels
    "mottle": (0.0, 0.2),  # standard deviation of the shape's lightness
    "grain": (0.0, 0.17),  # standard deviation of the background's grain
    "grain_size": (0.85, 1.3),  # standard deviation of a blob in pixels; a blob is about 2 to 3 pixels across
    "shift_x": (-2.0, 2.0),
    "shift_y": (-2.0, 2.0),
    "tilt": (-18.0, 18.0),
    "scale": (9.5, 11.5),  # radius of a circle with the same area
    "background": (-0.5, 0.5),  # mean grey of the background
}
_SLOW_TERMS = 5  # x, y, xy, x², y²
_SLOW_STD = 0.07
_NOTCH = 1.5  # standard deviation, in pixels, of the blobs by which a ragged outline is displaced

Plane = Float[np.ndarray, "n h w"]
Corners = Sequence[tuple[float | int, float | int]]


def _polygon(corners: Corners) -> Callable[[Plane, Plane], Plane]:
    """Makes a function that computes the exact signed distance to a polygon (negative inside), after Inigo Quilez."""
    points = np.asarray(corners, np.float32)

    def distance(x: Plane, y: Plane) -> Plane:
        nearest = np.full(x.shape, np.inf, np.float32)
        inside = np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(points, np.roll(points, 1, axis=0), strict=True):
            # The edge vector, and the vector from the edge's start to each pixel.
            ex = bx - ax
            ey = by - ay
            wx = x - ax
            wy = y - ay
            along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
            np.minimum(nearest, (wx - ex * along) ** 2 + (wy - ey * along) ** 2, out=nearest)
            # A pixel is inside if a ray from it crosses an odd number of edges; horizontal edges do not count.
            if ey:
                crosses = (ay <= y) != (by <= y)
                inside ^= crosses & (wx < ex * wy / ey)
        return np.sqrt(nearest) * np.where(inside, -1, 1).astype(np.float32)

    return distance


def _circle(x: Plane, y: Plane) -> Plane:
    """Returns the signed distance to the unit circle."""
    return np.hypot(x, y) - 1


def _heart(x: Plane, y: Plane) -> Plane:
    """Returns the signed distance to Inigo Quilez' heart, upright and centred."""
    x = np.abs(x) / 1.6
    y = 0.60 - y / 1.6
    lobe = np.hypot(x - 0.25, y - 0.75) - np.float32(np.sqrt(2) / 4)
    fold = np.maximum(x + y, 0) / 2
    tip = np.sqrt(np.minimum(x**2 + (y - 1) ** 2, (x - fold) ** 2 + (y - fold) ** 2)) * np.sign(x - y)
    return 1.6 * np.where(x + y > 1, lobe, tip)


def _moon(x: Plane, y: Plane) -> Plane:
    """Returns the signed distance to a disc with a bite taken out of its right side.

    It is the larger of two distances, which is exact except near the horns.
    """
    return np.maximum(np.hypot(x - 0.25, y) - 1.25, 0.98 - np.hypot(x - 0.98, y))


def _star_corners(points: int = 5, inner: float = 0.5) -> Corners:
    """Returns the corners of a star whose outer corners lie on the unit circle."""
    radii = np.where(np.arange(2 * points) % 2, inner, 1.0)
    angles = np.pi * np.arange(2 * points) / points
    return [(r * np.sin(a), -r * np.cos(a)) for r, a in zip(radii, angles, strict=True)]


def _cross_corners(arm: float = 0.36) -> Corners:
    """Returns the corners of a plus sign whose arms are ``2 * arm`` wide."""
    return [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
            (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)]  # fmt: skip


# Maps each shape to the signed distance on its own unit plane (y points down), and to the length of that unit in radii
# of a circle with the same area.
_DISTANCES: dict[str, tuple[Callable[[Plane, Plane], Plane], float]] = {
    "circle": (_circle, 1.0),
    "square": (_polygon([(-1, -1), (1, -1), (1, 1), (-1, 1)]), 0.88),
    "triangle": (_polygon([(0, -1.0), (0.95, 0.65), (-0.95, 0.65)]), 1.3),
    "star": (_polygon(_star_corners()), 1.32),
    "heart": (_heart, 1.12),
    "cross": (_polygon(_cross_corners()), 1.12),
    "moon": (_moon, 1.0),
}


def parse_prompt(prompt: str) -> tuple[str, str]:
    """Returns the colour and the shape that a caption names: ``"a red star"`` -> ``("red", "star")``.

    Raises:
      UserError: the prompt is not a caption of the toy world.
    """
    words = prompt.lower().split()
    if len(words) == 3 and words[0] in ("a", "an") and words[1] in COLOURS and words[2] in SHAPES:
        return words[1], words[2]
    raise UserError(
        f"prompt {prompt!r} is outside the toy world: expected 'a COLOUR SHAPE' with COLOUR one of "
        f"{', '.join(COLOURS)} and SHAPE one of {', '.join(SHAPES)}"
    )


def sample_factors(rng: np.random.Generator, count: int) -> dict[str, Float[np.ndarray, " b"]]:
    """Draws the hidden factors of ``count`` images, independently of one another and of the prompt (see `FACTORS`)."""
    return {name: rng.uniform(low, high, count).astype(np.float32) for name, (low, high) in FACTORS.items()}


def signed_distance(shapes: Sequence[str], factors: dict[str, Float[np.ndarray, " b"]]) -> Float[np.ndarray, "b h w"]:
    """Computes the distance of each pixel centre to the outline, in pixels and negative inside.

    Args:
      shapes: the name of the shape in each image.
      factors: the hidden factors, of which shift, tilt and scale are used.
    """
    # Coordinates relative to the centre of the shape.
    axis = (np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2)[None]
    x = (axis - factors["shift_x"][:, None])[:, None, :]  # [b 1 w]
    y = (axis - factors["shift_y"][:, None])[:, :, None]  # [b h 1]
    angle = np.deg2rad(factors["tilt"])[:, None, None]  # [b 1 1]
    cos = np.cos(angle)
    sin = np.sin(angle)

    # All images of the same shape at once: turn the coordinates upright and scale them to the shape's unit plane.
    distance = np.empty((len(shapes), SIZE, SIZE), np.float32)
    names = np.asarray(shapes)
    for shape in np.unique(names):
        rows = np.flatnonzero(names == shape)
        function, unit = _DISTANCES[str(shape)]
        pixels = factors["scale"][rows, None, None] * np.float32(unit)
        u = (cos[rows] * x[rows] + sin[rows] * y[rows]) / pixels
        v = (cos[rows] * y[rows] - sin[rows] * x[rows]) / pixels
        distance[rows] = function(u, v) * pixels
    return distance


def _blobs(rng: np.random.Generator, sizes: Float[np.ndarray, " b"]) -> Float[np.ndarray, "b h w"]:
    """Draws noise of unit variance, smoothed by a Gaussian with standard deviations of ``sizes`` pixels.

    Finer noise would not survive the latent of an autoencoder.
    """
    gap = np.arange(SIZE, dtype=np.float32)[:, None] - np.arange(SIZE, dtype=np.float32)  # [size size]
    kernel = np.exp(-0.5 * (gap[None] / sizes[:, None, None]) ** 2)  # [b size size]
    kernel[kernel < 1e-6] = 0  # subnormal tails make the matrix products ten times slower
    kernel /= np.sqrt(np.sum(kernel**2, axis=2, keepdims=True))
    noise = rng.standard_normal((len(sizes), SIZE, SIZE), dtype=np.float32)
    return kernel @ noise @ kernel.transpose(0, 2, 1)


def _slow_variation(rng: np.random.Generator, count: int) -> Float[np.ndarray, "b h w"]:
    """Draws a random quadratic of the two coordinates.

    It varies within an image, so that it cannot shine through the noise.
    """
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    x = np.broadcast_to(axis, (SIZE, SIZE))
    y = np.broadcast_to(axis[:, None], (SIZE, SIZE))
    terms = np.stack([1.7 * x, 1.7 * y, 3 * x * y, 3 * x**2 - 1, 3 * y**2 - 1]) / np.float32(np.sqrt(_SLOW_TERMS))
    weights = rng.standard_normal((count, _SLOW_TERMS), dtype=np.float32) * np.float32(_SLOW_STD)
    return np.einsum("bt,thw->bhw", weights, terms)


def render(
    rng: np.random.Generator, prompts: Collection[str], factors: dict[str, Float[np.ndarray, " b"]]
) -> Float[np.ndarray, "b h w 3"]:
    """Draws the images that ``factors`` describe.

    Args:
      rng: the source of the notches, of the grain and of the slow variation.
      prompts: the captions of the images.
      factors: the hidden factors of the images, by name.

    Returns:
      float32 RGB images of 32x32 pixels with values in [-1, 1].

    Raises:
      UserError: a prompt is not a caption of the toy world.
    """
    parsed = [parse_prompt(prompt) for prompt in prompts]

    # How much of each pixel the shape covers.
    distance = signed_distance([shape for _, shape in parsed], factors)
    notches = _blobs(rng, np.full(len(parsed), _NOTCH, np.float32))
    distance += factors["raggedness"][:, None, None] * notches
    cover = np.clip(0.5 - distance / factors["edge_width"][:, None, None], 0, 1)
    # The smoothstep applies only where the edge is soft: a ramp of one pixel is already the box filter of a straight
    # edge.
    soft = np.minimum(1, (factors["edge_width"] - 1) / 2)[:, None, None]
    cover += soft * (cover * cover * (3 - 2 * cover) - cover)

    # The shape's colour, the background, and the shape over the background.
    colour = np.asarray([PALETTE[name] for name, _ in parsed], np.float32)
    colour += factors["dullness"][:, None] * (colour.mean(1, keepdims=True) - colour)
    grey = factors["background"][:, None, None] + _slow_variation(rng, len(parsed))  # [b h w]
    images = grey[..., None] + cover[..., None] * (colour[:, None, None] - grey[..., None])

    # Roughness, whose strength on the shape does not depend on that on the background.
    strength = factors["grain"][:, None, None] + cover * (factors["mottle"] - factors["grain"])[:, None, None]
    grain = strength * _blobs(rng, factors["grain_size"])
    return np.clip(images + grain[..., None], -1, 1, dtype=np.float32)


def draw(
    rng: np.random.Generator, prompts: Collection[str]
) -> tuple[Float[np.ndarray, "b h w 3"], dict[str, Float[np.ndarray, " b"]]]:
    """Draws one image per prompt, each with its own hidden factors.

    Returns:
      (float32 RGB images of 32x32 pixels with values in [-1, 1], hidden factors by name; see `FACTORS`).

    Raises:
      UserError: a prompt is not a caption of the toy world.
    """
    factors = sample_factors(rng, len(prompts))
    return render(rng, prompts, factors), factors

"""The closed-form ground truth of the toy world: what an image shows, and how well it is drawn.

The aesthetic is about fine detail: crisp edges, no grain, and exactly the colour of the palette. Each term peaks at the
value of a clean image and falls on *both* sides of it, so that over-sharpening, over-saturation and values outside
[-1, 1] lower the score just as blur, dullness and grain do. An image without one of the toy world's shapes scores
nothing. The module needs no jax.
"""

import functools
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from spo_jax.core.errors import UserError
from spo_jax.core.signs import SIGN_MEANINGS, out_of_range
from spo_jax.toy import world
from spo_jax.toy.pose import Pose, fit_pose

# Recognition of the shape.
_TILTS = np.arange(-30, 31, 5, dtype=np.float32)  # degrees; the toy world tilts by 18 at most
_WINDOW = 24  # height and width of a normalised mask in samples
_EXTENT = 1.9  # half the window, in radii of a circle with the shape's area
_FORM = (
    0.82,
    0.94,
)  # likeness to a shape that scores nothing, and everything; 98 % of the toy world's images exceed it
_LEAD = 0.03  # lead in likeness at which another colour or shape makes the score zero
_AREA = (0.75, 1.35)  # limits of the area, relative to the smallest and the largest that the toy world draws
_CHROMA_FLOOR = 0.12  # chroma below which an image shows nothing coloured

# Quality of the drawing. The scale of each deviation is about the worst that the toy world draws.
_RINGS = (-3, -2, -1, 1, 2, 3)  # distances from the outline in pixels, negative inside
_SOFT = 0.80  # scale of the rings' deviation from a clean edge
_RAGGED = 0.55  # scale of the outline's displacement in pixels
_MOTTLED = 0.2  # scale of the shape's roughness
_GRAINY = 0.15  # scale of the background's roughness
_DULL = 0.60  # scale of the distance from the palette colour, relative to that colour's own chroma
_TOLERANCE = 0.05  # share of a scale that counts as perfect, about the error of measuring a clean image
_PER_COVER = 2.5  # pixels of displacement for each unit of surplus cover, smoothed at the outline
_KNEE = 0.7  # share of a scale beyond which a term falls exponentially rather than linearly

_GREYLESS = np.eye(3, dtype=np.float32) - np.float32(1 / 3)
_AXIS = np.arange(world.SIZE, dtype=np.float32) - (world.SIZE - 1) / 2  # of pixel centres, from the middle of the image
_PALETTE = np.asarray([world.PALETTE[name] for name in world.COLOURS], np.float32)


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


def _chroma(colours: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
    """Removes the grey part of colours."""
    return colours @ _GREYLESS


def _square(values: Float[np.ndarray, "... c"]) -> Float[np.ndarray, "..."]:
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


def _layers(mask: Bool[np.ndarray, "b h w"]) -> list[Bool[np.ndarray, "b h w"]]:
    """Returns the mask, followed by the mask shrunk by 1, 2, ... pixels.

    Alternating between crosses and squares as neighbourhoods makes octagons.
    """
    layers = [mask]
    for step in range(max(_RINGS)):
        layers.append(_shrink(layers[-1], square=bool(step % 2)))
    return layers


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


def _masked_mean(values: Float[np.ndarray, "b h w ..."], mask: Bool[np.ndarray, "b h w"]) -> np.ndarray:
    """Returns the mean of each image's values over the pixels of its mask."""
    weight = mask.astype(np.float32).reshape(len(mask), 1, -1)  # [b h w] -> [b 1 p]
    flat = values.reshape(len(mask), weight.shape[2], -1)  # [b h w ...] -> [b p c]
    mean = (weight @ flat)[:, 0] / np.maximum(weight.sum(2), 1)
    return mean.reshape(len(mask), *values.shape[3:])


def _first_mask(images: Float[np.ndarray, "b h w 3"]) -> Bool[np.ndarray, "b h w"]:
    """Finds the shape by chroma alone: backgrounds and grain are grey, so that neither disturbs it."""
    # Chroma relative to the median of the image's border.
    chroma = _chroma(images)
    frame = np.ones((world.SIZE, world.SIZE), bool)
    frame[2:-2, 2:-2] = False
    chroma = chroma - np.median(chroma[:, frame], axis=1)[:, None, None]

    # How far each pixel goes in the direction of the mean chroma, in which strong pixels count more.
    strength = np.sqrt(_square(chroma))
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
        deep = _layers(inside)
        away = _layers(~inside)
        background = _smooth_background(images, away[2])
        core = np.where(deep[2].any((1, 2), keepdims=True), deep[2], inside)
        colour = _masked_mean(images, core)

        # The cover is the position of each pixel between the two. The contrast is blind to grain without its grey part.
        contrast = _chroma(colour[:, None, None] - background)
        along = np.einsum("bhwc,bhwc->bhw", images - background, contrast)
        cover = along / np.maximum(_square(contrast), 1e-3)
        inside = cover > 0.5
    return Parts(cover, background, colour, inside)


def _centroids(cover: Float[np.ndarray, "b h w"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns x and y of the centroid from the middle of the image, and the radius of a circle of the same area."""
    area = np.maximum(cover.sum((1, 2)), 4)
    return cover.sum(1) @ _AXIS / area, cover.sum(2) @ _AXIS / area, np.sqrt(area / np.pi)


def _normalised_masks(cover: Float[np.ndarray, "b h w"]) -> Float[np.ndarray, "b m"]:
    """Moves masks to their centroid and scales them to unit area, bilinearly, then to zero mean and unit norm."""
    # Where the window's samples lie, relative to the centroid.
    cover = np.clip(cover, 0, 1)
    centre_x, centre_y, radius = _centroids(cover)
    offsets = np.linspace(-_EXTENT, _EXTENT, _WINDOW, dtype=np.float32) * radius[:, None]

    def tent(centre: np.ndarray) -> np.ndarray:
        """Returns the bilinear weights of the pixels in each sample along one axis, [b window size]."""
        return np.maximum(0, 1 - np.abs((centre[:, None] + offsets)[:, :, None] - _AXIS))

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


def _tilted_likeness(parts: Parts) -> Float[np.ndarray, "b shapes tilts"]:
    """Returns the correlation of the mask with each shape at each tilt."""
    templates = _templates()
    scores = _normalised_masks(parts.cover) @ templates.reshape(-1, templates.shape[-1]).T  # [b shapes * tilts]
    return scores.reshape(len(scores), *templates.shape[:2])


def _pose(parts: Parts, likeness: Float[np.ndarray, "b shapes tilts"], shape: Int[np.ndarray, " b"]) -> Pose:
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


def _hue_likeness(parts: Parts) -> Float[np.ndarray, "b colours"]:
    """Returns the cosine between the hue and that of each palette colour.

    Pulling a colour towards grey does not change it.
    """
    chroma = _chroma(parts.colour)
    palette = _chroma(_PALETTE)
    chroma = chroma / np.maximum(np.linalg.norm(chroma, axis=1, keepdims=True), 1e-3)
    return chroma @ (palette / np.linalg.norm(palette, axis=1, keepdims=True)).T


def classify(images: Float[np.ndarray, "b h w 3"]) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
    """Recognises the colour and the shape that each image shows.

    Args:
      images: values in [-1, 1].

    Returns:
      (index into `world.COLOURS`, index into `world.SHAPES`).
    """
    parts = take_apart(_finite(images))
    return np.argmax(_hue_likeness(parts), axis=1), np.argmax(_tilted_likeness(parts).max(2), axis=1)


def _indices(prompts: Collection[str]) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
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
    wanted_colour, wanted_shape = _indices(prompts)
    right = {"colour": colour == wanted_colour, "shape": shape == wanted_shape}
    return right | {"all": right["colour"] & right["shape"]}


def check(prompts: Collection[str], size: tuple[int, int]) -> None:
    """Checks that images of these prompts can be judged.

    Args:
      prompts: the prompts of the images.
      size: (height, width) of the images.

    Raises:
      UserError: a prompt is not a caption of the toy world, or the images have another size.
    """
    _indices(prompts)
    if size != (world.SIZE, world.SIZE):
        expected = f"{world.SIZE} x {world.SIZE} pixels of the toy world"
        raise UserError(f"reward 'toy' judges the {expected}, not {size[0]} x {size[1]}; take 'spm'")


def _finite(images: Float[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b h w 3"]:
    """Replaces values that are not finite and clips the rest to a wide range."""
    return np.nan_to_num(np.asarray(images, np.float32), nan=0, posinf=4, neginf=-4).clip(-4, 4)


def _smoothed(cover: Float[np.ndarray, "b h w"]) -> Float[np.ndarray, "b h w"]:
    """Applies a [1 2 1] / 4 filter twice along both axes, which is a Gaussian of one pixel."""
    height, width = cover.shape[1:]
    padded = np.pad(cover, ((0, 0), (2, 2), (2, 2)), mode="edge")
    taps = np.float32([1, 4, 6, 4, 1]) / 16
    rows = sum(tap * padded[:, i : i + height] for i, tap in enumerate(taps))
    return sum(tap * rows[:, :, i : i + width] for i, tap in enumerate(taps))


def _rings(parts: Parts) -> list[Bool[np.ndarray, "b h w"]]:
    """Returns the pixels at each distance from the smoothed outline.

    Measured along a smoothed outline, a ragged edge is as soft as it looks.
    """
    inside = _smoothed(np.clip(parts.cover, 0, 1)) > 0.5
    deep = _layers(inside)
    away = _layers(~inside)
    rings = []
    for ring in _RINGS:
        layers = deep if ring < 0 else away
        rings.append(layers[abs(ring) - 1] & ~layers[abs(ring)])
    return rings


def _profile(parts: Parts) -> Float[np.ndarray, "b rings"]:
    """Returns the mean cover at each distance from the outline; averaging along the outline removes the grain."""
    return np.stack([_masked_mean(parts.cover, ring) for ring in _rings(parts)], axis=1)


@functools.cache
def _clean_profiles() -> Float[np.ndarray, "shapes rings"]:
    """Returns the `_profile` of each shape drawn cleanly, averaged over 64 poses."""
    rng = np.random.default_rng(0)
    poses = 64
    rows = []
    for shape in world.SHAPES:
        factors = world.sample_factors(rng, poses) | {"edge_width": np.ones(poses, np.float32)}
        factors |= {name: np.zeros(poses, np.float32) for name in ("dullness", "raggedness", "mottle", "grain")}
        images = world.render(rng, [f"a red {shape}"] * poses, factors)
        rows.append(_profile(take_apart(images)).mean(0))
    return np.stack(rows)


DETAILS = ("crisp", "trim", "even", "clean", "colour")  # the terms whose geometric mean is the core of the aesthetic


def _fall(deviation: Float[np.ndarray, " b"], scale: float) -> Float[np.ndarray, " b"]:
    """Maps a deviation to a term, which is 1 for no deviation and never stops falling.

    However bad an image is, a better one therefore scores higher.
    """
    share = np.maximum(0, deviation / scale - _TOLERANCE)
    return np.where(share < _KNEE, 1 - share, (1 - _KNEE) * np.exp((_KNEE - np.maximum(share, _KNEE)) / (1 - _KNEE)))


def _crisp(parts: Parts, shape: Int[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    """Returns the term for edges, which is highest where they are as sharp as those of a clean image."""
    deviation = np.abs(_profile(parts) - _clean_profiles()[shape]).sum(1)
    return _fall(deviation, _SOFT)


def _trim(parts: Parts, pose: Pose) -> Float[np.ndarray, " b"]:
    """Returns the term for the outline: how far it runs from that of the shape, which is fitted to the image.

    Cover that is too much or too little near the outline is a displacement; soft edges have both, which cancel.
    """
    surplus = _smoothed(np.clip(parts.cover, 0, 1) - pose.cover) * _PER_COVER
    return _fall(np.sqrt(_masked_mean(np.square(surplus), np.abs(pose.distance) < 1)), _RAGGED)


def _roughness(images: Float[np.ndarray, "b h w 3"], parts: Parts) -> tuple[np.ndarray, np.ndarray]:
    """Returns the roughness of the shape and of the background around their ideal values.

    Each is that of an area and, with a quarter of the weight, of its edge, where the other area's roughness shows too.
    """
    deep = _layers(parts.inside)
    away = _layers(~parts.inside)
    core = np.where(deep[2].any((1, 2), keepdims=True), deep[2], parts.inside)
    level = _masked_mean(images, core)[:, None, None]
    mixed = parts.background + np.clip(parts.cover, 0, 1)[..., None] * (level - parts.background)
    grey = parts.background.mean(-1, keepdims=True)  # a tint is as foreign to the toy world as grain

    def rough(ideal: np.ndarray, area: np.ndarray, edge: np.ndarray) -> Float[np.ndarray, " b"]:
        variances = [_masked_mean(_square(images - to) / 3, region) for to, region in ((ideal, area), (mixed, edge))]
        return np.sqrt(np.average(variances, axis=0, weights=(3, 1)))

    return rough(level, core, parts.inside & ~deep[3]), rough(grey, away[2], ~parts.inside & ~away[3])


def _true_colour(parts: Parts, colour: Int[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    """Returns the term for colour, which is highest where the colour is that of the palette."""
    wanted = _PALETTE[colour]
    distance = np.linalg.norm(parts.colour - wanted, axis=1) / np.linalg.norm(_chroma(wanted), axis=1)
    return _fall(distance, _DULL)


def layout(images: Float[np.ndarray, "b h w 3"]) -> dict[str, Float[np.ndarray, " b"]]:
    """Measures position, size and tilt of the shape that each image shows.

    Args:
      images: values around [-1, 1].

    Returns:
      ``shift_x``, ``shift_y``, ``scale`` and ``tilt`` with the meanings and units of `world.FACTORS`. The tilt of a
      circle is about 0, and an image without a shape has values without meaning.
    """
    parts = take_apart(_finite(images))
    likeness = _tilted_likeness(parts)
    return _pose(parts, likeness, likeness.max(2).argmax(1)).factors


def _layout_scores(factors: dict[str, Float[np.ndarray, " b"]]) -> dict[str, Float[np.ndarray, " b"]]:
    """Maps a layout to scores in [0, 1], which are linear over the range that the toy world draws."""
    furthest = np.hypot(world.FACTORS["shift_x"][1], world.FACTORS["shift_y"][1])
    smallest, largest = world.FACTORS["scale"]
    scores = {
        "centred": 1 - np.hypot(factors["shift_x"], factors["shift_y"]) / furthest,
        "large": (factors["scale"] - smallest) / (largest - smallest),
        "upright": 1 - np.abs(factors["tilt"]) / world.FACTORS["tilt"][1],
    }
    return {name: np.clip(values, 0, 1) for name, values in scores.items()}


def _unrivalled(likeness: Float[np.ndarray, "b n"], wanted: Int[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    """Returns 1 where ``wanted`` has the highest likeness, falling to 0 where another one leads by `_LEAD`."""
    own = likeness[np.arange(len(wanted)), wanted]
    return np.clip(1 - (likeness.max(1) - own) / _LEAD, 0, 1)


def _form(parts: Parts, likeness: Float[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    """Returns 1 for a shape of a size that the toy world draws and 0 for a blob, a speck or nothing, in any pose."""
    low, high = _FORM
    alike = np.clip((likeness - low) / (high - low), 0, 1)
    area = parts.inside.sum((1, 2)) / np.pi
    smallest, largest = (scale**2 for scale in world.FACTORS["scale"])
    small = np.clip(2 * area / (smallest * _AREA[0]) - 1, 0, 1)
    large = np.clip(2 - area / (largest * _AREA[1]), 0, 1)
    return alike * small * large


def aesthetic_terms(
    images: Float[np.ndarray, "b h w 3"], prompts: Collection[str] | None = None
) -> dict[str, Float[np.ndarray, " b"]]:
    """Computes the terms of `aesthetic`.

    Args:
      images: as in `aesthetic`.
      prompts: as in `aesthetic`.

    Returns:
      The terms in `DETAILS`, and ``form``, ``meant`` and ``range``, each in [0, 1].
    """
    finite = _finite(images)
    parts = take_apart(finite)
    hues = _hue_likeness(parts)
    tilted = _tilted_likeness(parts)
    likeness = tilted.max(2)
    if prompts is None:
        colour = hues.argmax(1)
        shape = likeness.argmax(1)
    else:
        colour, shape = _indices(prompts)
    mottle, grain = _roughness(finite, parts)
    return {
        "crisp": _crisp(parts, shape),
        "trim": _trim(parts, _pose(parts, tilted, shape)),
        "even": _fall(mottle, _MOTTLED),
        "clean": _fall(grain, _GRAINY),
        "colour": _true_colour(parts, colour),
        "form": _form(parts, likeness[np.arange(len(shape)), shape]),
        "meant": _unrivalled(hues, colour) * _unrivalled(likeness, shape),
        "range": np.clip(1 - 5 * out_of_range(images), 0, 1),
    }


def aesthetic(images: Float[np.ndarray, "b h w 3"], prompts: Collection[str] | None = None) -> Float[np.ndarray, " b"]:
    """Computes how well each image is drawn, form · meant · range · ⁵√(crisp · trim · even · clean · colour), in [0, 1].

    Args:
      images: values around [-1, 1], not clipped; values outside that range lower the score.
      prompts: what the images should show, anything else scores 0; if None, what each image shows is taken as meant.

    Raises:
      UserError: a prompt is not a caption of the toy world.
    """
    terms = aesthetic_terms(images, prompts)
    # The geometric mean, because with their arithmetic mean an image could pay for one term with the ruin of another.
    drawn = np.prod([terms[name] for name in DETAILS], axis=0) ** (1 / len(DETAILS))
    return (terms["form"] * terms["meant"] * terms["range"] * drawn).astype(np.float32)


MEANINGS = {
    "aesthetic": "true quality of the drawing, 0 to 1; the toy preference model learned from pairs labelled by it",
    "accuracy/colour": "share of images with the colour of the prompt",
    "accuracy/shape": "share of images with the shape of the prompt",
    "accuracy/all": "share of images with both the colour and the shape of the prompt",
    "out_of_range": SIGN_MEANINGS["out_of_range"],
}


def measure(images: Float[np.ndarray, "b h w 3"], prompts: Collection[str]) -> dict[str, Float[np.ndarray, " b"]]:
    """Computes every ground truth of the toy world for each image.

    Args:
      images: values around [-1, 1], not clipped.
      prompts: the prompts of the images.

    Returns:
      The values by the names of `MEANINGS`.

    Raises:
      UserError: a prompt is not a caption of the toy world.
    """
    right = accuracy(images, prompts)
    return {
        "aesthetic": aesthetic(images),
        **{f"accuracy/{name}": right[name].astype(np.float64) for name in ("colour", "shape", "all")},
        "out_of_range": out_of_range(images),
    }


TERM_MEANINGS = {
    "term/crisp": "true sharpness of the edges, 0 to 1: a term of the aesthetic",
    "term/trim": "true straightness of the outline, 0 to 1: a term of the aesthetic",
    "term/even": "true evenness of the shape's surface, 0 to 1: a term of the aesthetic",
    "term/clean": "true absence of grain in the background, 0 to 1: a term of the aesthetic",
    "term/colour": "nearness to the colour of the palette, 0 to 1: a term of the aesthetic",
    "term/form": "likeness to one of the shapes at one of its sizes, 0 to 1: a term of the aesthetic",
    "layout/centred": "1 for a shape in the middle, 0 for one that is as far from it as any of the toy world",
    "layout/large": "0 for the smallest shapes of the toy world, 1 for the largest",
    "layout/upright": "1 for a shape that is not tilted, 0 for one that is tilted as far as any of the toy world",
}


def measure_terms(images: Float[np.ndarray, "b h w 3"]) -> dict[str, Float[np.ndarray, " b"]]:
    """Measures what the aesthetic of each image is made of, and the layout, which is no part of it.

    Args:
      images: values around [-1, 1], not clipped.

    Returns:
      The values by the names of `TERM_MEANINGS`, each in [0, 1]; what an image shows is taken as meant.
    """
    scores = {f"term/{name}": values for name, values in aesthetic_terms(images).items()}
    scores |= {f"layout/{name}": values for name, values in _layout_scores(layout(images)).items()}
    return {name: scores[name] for name in TERM_MEANINGS}

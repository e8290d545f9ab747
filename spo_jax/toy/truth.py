"""Closed-form judgements of the embedded world's pictures: what is shown, and how well it is drawn.

The aesthetic is about fine detail: crisp edges, no grain, the palette's own colour. Each term peaks at what a clean
picture has and falls on *both* sides, so over-sharpening, over-saturation and values outside [-1, 1] lose as blur,
dullness and grain do; a picture without one of the world's shapes scores nothing. Only numpy.
"""

import functools
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from spo_jax.core.errors import UserError
from spo_jax.toy import world

_TILTS = np.arange(-30, 31, 5, dtype=np.float32)  # degrees; the world tilts by 18 at most
_WINDOW = 24  # samples a side of a normalised mask
_EXTENT = 1.9  # half the window, in radii of a circle of the shape's area
_RINGS = (-3, -2, -1, 1, 2, 3)  # pixels from the outline, inside negative
_SOFT = 0.80  # scales, about the worst that the world draws: ring deviation,
_ROUGH = 0.15  # grain,
_DULL = 0.60  # distance from the palette colour relative to the colour's own chroma
_TOLERANCE = 0.05  # share of a scale that counts as perfect, about what measuring a clean picture costs
_KNEE = 0.7  # share of a scale after which a term falls exponentially rather than linearly
_FORM = (0.84, 0.97)  # likeness to the shape: nothing below, everything above; pictures of the world are above 0.98
_LEAD = 0.03  # likeness by which something else may lead before what was asked for counts for nothing
_AREA = (0.75, 1.35)  # area relative to the smallest and the largest that the world draws
_CHROMA_FLOOR = 0.12  # chroma below which nothing coloured is shown

_GREYLESS = np.eye(3, dtype=np.float32) - np.float32(1 / 3)
_PALETTE = np.asarray([world.PALETTE[name] for name in world.COLOURS], np.float32)


class Parts(NamedTuple):
    """A picture taken apart; what every judgement starts from.

    Attributes:
      cover: share of each pixel that the shape covers: 0 background, 1 shape, beyond both where edges ring.
      background: smooth background below the whole picture, RGB.
      colour: mean colour of the shape's interior, RGB.
      inside: pixels that belong to the shape.
    """

    cover: Float[np.ndarray, "b h w"]
    background: Float[np.ndarray, "b h w 3"]
    colour: Float[np.ndarray, "b 3"]
    inside: Bool[np.ndarray, "b h w"]


def _chroma(colours: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
    """What is left of colours without their grey."""
    return colours @ _GREYLESS


def _square(values: Float[np.ndarray, "... c"]) -> Float[np.ndarray, "..."]:
    """Squared length over the last axis; several times faster there than numpy's reductions."""
    return np.einsum("...c,...c->...", values, values)


def _shrink(mask: Bool[np.ndarray, "b h w"], square: bool) -> Bool[np.ndarray, "b h w"]:
    """Drops the pixels with a neighbour outside; beyond the picture the mask goes on as at its border."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)), mode="edge")
    height, width = mask.shape[1:]
    steps = [(i, j) for i in range(3) for j in range(3) if square or i == 1 or j == 1]
    return np.logical_and.reduce([padded[:, i : i + height, j : j + width] for i, j in steps])


def _layers(mask: Bool[np.ndarray, "b h w"]) -> list[Bool[np.ndarray, "b h w"]]:
    """The mask, then what is left of it 1, 2, ... pixels in; cross and square steps in turn make octagons."""
    layers = [mask]
    for step in range(max(_RINGS)):
        layers.append(_shrink(layers[-1], square=bool(step % 2)))
    return layers


@functools.cache
def _quadratic() -> Float[np.ndarray, "p 6"]:
    axis = np.linspace(-1, 1, world.SIZE, dtype=np.float32)
    y, x = (plane.ravel() for plane in np.meshgrid(axis, axis, indexing="ij"))
    return np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=1)


def _smooth_background(images: Float[np.ndarray, "b h w 3"], outside: Bool[np.ndarray, "b h w"]) -> np.ndarray:
    """Least-squares quadratic through the pixels outside the shape, the form of the world's own slow variation."""
    basis, count = _quadratic(), len(images)
    weight = outside.reshape(count, -1).astype(np.float32)
    outer = (basis[:, :, None] * basis[:, None, :]).reshape(len(basis), -1)
    normal = (weight @ outer).reshape(count, basis.shape[1], basis.shape[1])
    moment = basis.T @ (weight[:, :, None] * images.reshape(count, -1, 3))
    ridge = 1e-2 * np.eye(basis.shape[1], dtype=np.float32)  # for pictures with hardly any background
    return (basis @ np.linalg.solve(normal + ridge, moment)).reshape(images.shape)


def _masked_mean(values: Float[np.ndarray, "b h w ..."], mask: Bool[np.ndarray, "b h w"]) -> np.ndarray:
    weight = mask.astype(np.float32).reshape(len(mask), 1, -1)
    flat = values.reshape(len(mask), weight.shape[2], -1)
    mean = (weight @ flat)[:, 0] / np.maximum(weight.sum(2), 1)
    return mean.reshape(len(mask), *values.shape[3:])


def _first_mask(images: Float[np.ndarray, "b h w 3"]) -> Bool[np.ndarray, "b h w"]:
    """The shape by chroma alone: backgrounds and grain are grey, so neither disturbs it."""
    chroma = _chroma(images)
    frame = np.ones((world.SIZE, world.SIZE), bool)
    frame[2:-2, 2:-2] = False
    chroma = chroma - np.median(chroma[:, frame], axis=1)[:, None, None]
    strength = np.sqrt(_square(chroma))
    direction = np.einsum("bhwc,bhw->bc", chroma, strength)
    direction /= np.maximum(np.linalg.norm(direction, axis=-1, keepdims=True), 1e-6)
    along = np.einsum("bhwc,bc->bhw", chroma, direction)
    # Level of the interior: the mean of the strongest tenth, which every shape of the world covers.
    flat = np.sort(along.reshape(len(images), -1), axis=1)
    level = flat[:, -flat.shape[1] // 10 :].mean(1)
    return along > np.maximum(level, _CHROMA_FLOOR)[:, None, None] / 2


def take_apart(images: Float[np.ndarray, "b h w 3"]) -> Parts:
    """Splits pictures into background, colour and cover."""
    inside = _first_mask(images)
    for _ in range(2):
        deep, away = _layers(inside), _layers(~inside)
        background = _smooth_background(images, away[2])
        core = np.where(deep[2].any((1, 2), keepdims=True), deep[2], inside)
        colour = _masked_mean(images, core)
        # Without its grey part the contrast is blind to grain.
        contrast = _chroma(colour[:, None, None] - background)
        along = np.einsum("bhwc,bhwc->bhw", images - background, contrast)
        cover = along / np.maximum(_square(contrast), 1e-3)
        inside = cover > 0.5
    return Parts(cover, background, colour, inside)


def _normalised_masks(cover: Float[np.ndarray, "b h w"]) -> Float[np.ndarray, "b m"]:
    """Masks moved to their centroid and scaled to unit area, bilinearly, then zero mean and unit norm."""
    cover = np.clip(cover, 0, 1)
    axis = np.arange(world.SIZE, dtype=np.float32)
    area = np.maximum(cover.sum((1, 2)), 4)
    centre_x = cover.sum(1) @ axis / area
    centre_y = cover.sum(2) @ axis / area
    offsets = np.linspace(-_EXTENT, _EXTENT, _WINDOW, dtype=np.float32) * np.sqrt(area / np.pi)[:, None]

    def tent(centre: np.ndarray) -> np.ndarray:
        return np.maximum(0, 1 - np.abs((centre[:, None] + offsets)[:, :, None] - axis))

    masks = (tent(centre_y) @ cover @ tent(centre_x).transpose(0, 2, 1)).reshape(len(cover), -1)
    masks = masks - masks.mean(1, keepdims=True)
    return masks / np.maximum(np.linalg.norm(masks, axis=1, keepdims=True), 1e-6)


@functools.cache
def _templates() -> Float[np.ndarray, "shapes tilts m"]:
    """Normalised masks of every shape at every tilt, with an edge of middling softness."""
    names = [shape for shape in world.SHAPES for _ in _TILTS]
    zeros = np.zeros(len(names), np.float32)
    pose = {"shift_x": zeros, "shift_y": zeros, "scale": zeros + 10.5, "tilt": np.tile(_TILTS, len(world.SHAPES))}
    cover = np.clip(0.5 - world.signed_distance(names, pose) / 2.5, 0, 1)
    return _normalised_masks(cover).reshape(len(world.SHAPES), len(_TILTS), -1)


def _likeness(parts: Parts) -> Float[np.ndarray, "b shapes"]:
    """Correlation of the mask with each shape at its best tilt."""
    templates = _templates()
    scores = _normalised_masks(parts.cover) @ templates.reshape(-1, templates.shape[-1]).T
    return scores.reshape(len(scores), *templates.shape[:2]).max(2)


def _hue_likeness(parts: Parts) -> Float[np.ndarray, "b colours"]:
    """Cosine of the hue with each palette colour's: pulling a colour towards grey leaves it."""
    chroma, palette = _chroma(parts.colour), _chroma(_PALETTE)
    chroma = chroma / np.maximum(np.linalg.norm(chroma, axis=1, keepdims=True), 1e-3)
    return chroma @ (palette / np.linalg.norm(palette, axis=1, keepdims=True)).T


def classify(images: Float[np.ndarray, "b h w 3"]) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
    """What is shown: (index into `world.COLOURS`, index into `world.SHAPES`); images in [-1, 1]."""
    parts = take_apart(_finite(images))
    return np.argmax(_hue_likeness(parts), axis=1), np.argmax(_likeness(parts), axis=1)


def _indices(prompts: Collection[str]) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
    parsed = [world.parse_prompt(prompt) for prompt in prompts]
    colours = np.asarray([world.COLOURS.index(colour) for colour, _ in parsed])
    return colours, np.asarray([world.SHAPES.index(shape) for _, shape in parsed])


def accuracy(images: Float[np.ndarray, "b h w 3"], prompts: Collection[str]) -> dict[str, Bool[np.ndarray, " b"]]:
    """Whether each picture shows what its prompt says: keys ``colour``, ``shape`` and ``all``.

    Raises:
      UserError: a prompt is not a caption of the embedded world.
    """
    colour, shape = classify(images)
    wanted_colour, wanted_shape = _indices(prompts)
    right = {"colour": colour == wanted_colour, "shape": shape == wanted_shape}
    return right | {"all": right["colour"] & right["shape"]}


def check(prompts: Collection[str], size: tuple[int, int]) -> None:
    """Raises a `UserError` if pictures of (height, width) for these prompts cannot be judged."""
    _indices(prompts)
    if size != (world.SIZE, world.SIZE):
        expected = f"{world.SIZE} x {world.SIZE} pixels of the embedded world"
        raise UserError(f"eval.reward 'scenes' judges the {expected}, not {size[0]} x {size[1]}; take 'spm'")


def out_of_range_share(images: Float[np.ndarray, "b h w c"]) -> Float[np.ndarray, " b"]:
    """Share of each picture's values outside [-1, 1]; values that are not finite count."""
    return 1 - (np.abs(images) <= 1).mean((1, 2, 3))


def _finite(images: Float[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b h w 3"]:
    return np.nan_to_num(np.asarray(images, np.float32), nan=0, posinf=4, neginf=-4).clip(-4, 4)


def _smoothed(cover: Float[np.ndarray, "b h w"]) -> Float[np.ndarray, "b h w"]:
    """Twice through a [1 2 1] / 4 filter both ways: a Gaussian of one pixel."""
    height, width = cover.shape[1:]
    padded = np.pad(np.clip(cover, 0, 1), ((0, 0), (2, 2), (2, 2)), mode="edge")
    taps = np.float32([1, 4, 6, 4, 1]) / 16
    rows = sum(tap * padded[:, i : i + height] for i, tap in enumerate(taps))
    return sum(tap * rows[:, :, i : i + width] for i, tap in enumerate(taps))


def _rings(parts: Parts) -> list[Bool[np.ndarray, "b h w"]]:
    """Pixels at each distance from the smoothed outline: along it a ragged edge is as soft as it looks."""
    inside = _smoothed(parts.cover) > 0.5
    deep, away = _layers(inside), _layers(~inside)
    return [(deep if ring < 0 else away)[abs(ring) - 1] & ~(deep if ring < 0 else away)[abs(ring)] for ring in _RINGS]


def _profile(parts: Parts) -> Float[np.ndarray, "b rings"]:
    """Mean cover at each distance from the outline; averaging along the outline takes the grain out."""
    return np.stack([_masked_mean(parts.cover, ring) for ring in _rings(parts)], axis=1)


@functools.cache
def _clean_profiles() -> Float[np.ndarray, "shapes rings"]:
    """What `_profile` gives for each shape drawn cleanly, averaged over 64 poses."""
    rng, poses = np.random.default_rng(0), 64
    rows = []
    for shape in world.SHAPES:
        factors = world.sample_factors(rng, poses) | {"edge_width": np.ones(poses, np.float32)}
        factors |= {name: np.zeros(poses, np.float32) for name in ("dullness", "grain")}
        rows.append(_profile(take_apart(world.render(rng, [f"a red {shape}"] * poses, factors))).mean(0))
    return np.stack(rows)


def _fall(deviation: Float[np.ndarray, " b"], scale: float) -> Float[np.ndarray, " b"]:
    """1 at no deviation, falling for ever: however bad a picture is, a better one scores higher."""
    share = np.maximum(0, deviation / scale - _TOLERANCE)
    return np.where(share < _KNEE, 1 - share, (1 - _KNEE) * np.exp((_KNEE - np.maximum(share, _KNEE)) / (1 - _KNEE)))


def _crisp(parts: Parts, shape: Int[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    deviation = np.abs(_profile(parts) - _clean_profiles()[shape]).sum(1)
    return _fall(deviation, _SOFT)


def _clean(images: Float[np.ndarray, "b h w 3"], parts: Parts) -> Float[np.ndarray, " b"]:
    """Roughness of background, interior and edge, each about what it should be, none diluting another."""
    deep, away = _layers(parts.inside), _layers(~parts.inside)
    core = np.where(deep[2].any((1, 2), keepdims=True), deep[2], parts.inside)
    level = _masked_mean(images, core)[:, None, None]
    mixed = parts.background + np.clip(parts.cover, 0, 1)[..., None] * (level - parts.background)
    grey = parts.background.mean(-1, keepdims=True)  # a tint is as foreign to the world as grain
    regions = ((level, core), (grey, away[2]), (mixed, ~deep[3] & ~away[3]))
    variances = [_masked_mean(_square(images - ideal) / 3, region) for ideal, region in regions]
    return _fall(np.sqrt(np.mean(variances, axis=0)), _ROUGH)


def _true_colour(parts: Parts, colour: Int[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    wanted = _PALETTE[colour]
    distance = np.linalg.norm(parts.colour - wanted, axis=1) / np.linalg.norm(_chroma(wanted), axis=1)
    return _fall(distance, _DULL)


def _unrivalled(likeness: Float[np.ndarray, "b n"], wanted: Int[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    """1 where ``wanted`` is the most alike, falling to 0 as another one leads by `_LEAD`."""
    own = likeness[np.arange(len(wanted)), wanted]
    return np.clip(1 - (likeness.max(1) - own) / _LEAD, 0, 1)


def _form(parts: Parts, likeness: Float[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    """1 for the shape at a size of the world, 0 for a blob, a speck or nothing, whatever the pose."""
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
    """The parts of `aesthetic`: ``crisp``, ``clean``, ``colour``, ``form``, ``meant``, ``range``, each in [0, 1]."""
    finite = _finite(images)
    parts = take_apart(finite)
    hues, likeness = _hue_likeness(parts), _likeness(parts)
    colour, shape = (hues.argmax(1), likeness.argmax(1)) if prompts is None else _indices(prompts)
    return {
        "crisp": _crisp(parts, shape),
        "clean": _clean(finite, parts),
        "colour": _true_colour(parts, colour),
        "form": _form(parts, likeness[np.arange(len(shape)), shape]),
        "meant": _unrivalled(hues, colour) * _unrivalled(likeness, shape),
        "range": np.clip(1 - 5 * out_of_range_share(images), 0, 1),
    }


def aesthetic(images: Float[np.ndarray, "b h w 3"], prompts: Collection[str] | None = None) -> Float[np.ndarray, " b"]:
    """How well each picture is drawn, in [0, 1]: form · meant · range · ∛(crisp · clean · colour).

    Args:
      images: about [-1, 1], not clipped: what lies outside counts against the picture.
      prompts: what should be shown, anything else scores 0; without them, whatever is shown is taken as meant.

    Raises:
      UserError: a prompt is not a caption of the embedded world.
    """
    terms = aesthetic_terms(images, prompts)
    # Not their mean: a picture could pay for one term with the ruin of another.
    drawn = np.cbrt(terms["crisp"] * terms["clean"] * terms["colour"])
    return (terms["form"] * terms["meant"] * terms["range"] * drawn).astype(np.float32)


MEANINGS = {
    "aesthetic": "ground truth of the drawing's quality, 0 to 1; the judge learnt from pairs labelled by it",
    "accuracy/colour": "share of pictures with the colour of the prompt",
    "accuracy/shape": "share of pictures with the shape of the prompt",
    "accuracy/all": "share of pictures with both",
    "out_of_range": "share of pixel values outside [-1, 1]",
}


def measure(images: Float[np.ndarray, "b h w 3"], prompts: Collection[str]) -> dict[str, Float[np.ndarray, " b"]]:
    """Every ground truth of the world per picture, by the names of `MEANINGS`; images are not clipped."""
    right = accuracy(images, prompts)
    return {
        "aesthetic": aesthetic(images),
        **{f"accuracy/{name}": right[name].astype(np.float64) for name in ("colour", "shape", "all")},
        "out_of_range": out_of_range_share(images),
    }

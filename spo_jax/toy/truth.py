"""The closed-form ground truth of the toy world: what an image shows, and how well it is drawn.

The aesthetic is about fine detail: crisp edges, an outline without notches, an even surface, a background without
grain, and exactly the colour of the palette. Each term peaks at the value of a clean image and falls on *both* sides of
it, so that over-sharpening, over-saturation, rounded corners and values outside [-1, 1] lower the score just as blur,
dullness, notches and grain do. An image without one of the toy world's shapes scores nothing. The module needs no jax.
"""

import functools
from collections.abc import Collection

import numpy as np
from jaxtyping import Bool, Float, Int

from spo_jax.core.errors import UserError
from spo_jax.core.signs import SIGN_MEANINGS, out_of_range
from spo_jax.toy import world
from spo_jax.toy.parts import Parts, as_finite, chroma_of, layers_of, masked_mean, smoothed, square, take_apart
from spo_jax.toy.pose import Pose
from spo_jax.toy.recognition import PALETTE, accuracy, hue_likeness, indices, layout, pose_of, tilted_likeness

DETAILS = ("crisp", "trim", "even", "clean", "colour")  # the terms whose geometric mean is the core of the aesthetic

# What an image has to show.
_FORM = (0.82, 0.94)  # likeness to a shape that scores nothing, and everything; 98 % of real images exceed it
_LEAD = 0.03  # lead in likeness at which another colour or shape makes the score zero
_AREA = (0.75, 1.35)  # limits of the area, relative to the smallest and the largest that the toy world draws

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


def check(prompts: Collection[str], size: tuple[int, int]) -> None:
    """Checks that images of these prompts can be judged.

    Args:
      prompts: the prompts of the images.
      size: (height, width) of the images.

    Raises:
      UserError: a prompt is not a caption of the toy world, or the images have another size.
    """
    indices(prompts)
    if size != (world.SIZE, world.SIZE):
        expected = f"{world.SIZE} x {world.SIZE} pixels of the toy world"
        raise UserError(f"reward 'toy' judges the {expected}, not {size[0]} x {size[1]}; take 'spm'")


def _rings(parts: Parts) -> list[Bool[np.ndarray, "b h w"]]:
    """Returns the pixels at each distance from the smoothed outline.

    Measured along a smoothed outline, a ragged edge is as soft as it looks.
    """
    inside = smoothed(np.clip(parts.cover, 0, 1)) > 0.5
    deep = layers_of(inside)
    away = layers_of(~inside)
    rings = []
    for ring in _RINGS:
        layers = deep if ring < 0 else away
        rings.append(layers[abs(ring) - 1] & ~layers[abs(ring)])
    return rings


def _profile(parts: Parts) -> Float[np.ndarray, "b rings"]:
    """Returns the mean cover at each distance from the outline; averaging along the outline removes the grain."""
    return np.stack([masked_mean(parts.cover, ring) for ring in _rings(parts)], axis=1)


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
    surplus = smoothed(np.clip(parts.cover, 0, 1) - pose.cover) * _PER_COVER
    return _fall(np.sqrt(masked_mean(np.square(surplus), np.abs(pose.distance) < 1)), _RAGGED)


def _roughness(images: Float[np.ndarray, "b h w 3"], parts: Parts) -> tuple[np.ndarray, np.ndarray]:
    """Returns the roughness of the shape and of the background around their ideal values.

    Each is that of an area and, with a quarter of the weight, of its edge, where the other area's roughness shows too.
    """
    deep = layers_of(parts.inside)
    away = layers_of(~parts.inside)
    core = np.where(deep[2].any((1, 2), keepdims=True), deep[2], parts.inside)
    level = masked_mean(images, core)[:, None, None]
    mixed = parts.background + np.clip(parts.cover, 0, 1)[..., None] * (level - parts.background)
    grey = parts.background.mean(-1, keepdims=True)  # a tint is as foreign to the toy world as grain

    def rough(ideal: np.ndarray, area: np.ndarray, edge: np.ndarray) -> Float[np.ndarray, " b"]:
        variances = [masked_mean(square(images - to) / 3, region) for to, region in ((ideal, area), (mixed, edge))]
        return np.sqrt(np.average(variances, axis=0, weights=(3, 1)))

    return rough(level, core, parts.inside & ~deep[3]), rough(grey, away[2], ~parts.inside & ~away[3])


def _true_colour(parts: Parts, colour: Int[np.ndarray, " b"]) -> Float[np.ndarray, " b"]:
    """Returns the term for colour, which is highest where the colour is that of the palette."""
    wanted = PALETTE[colour]
    distance = np.linalg.norm(parts.colour - wanted, axis=1) / np.linalg.norm(chroma_of(wanted), axis=1)
    return _fall(distance, _DULL)


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
    finite = as_finite(images)
    parts = take_apart(finite)
    hues = hue_likeness(parts)
    tilted = tilted_likeness(parts)
    likeness = tilted.max(2)
    if prompts is None:
        colour = hues.argmax(1)
        shape = likeness.argmax(1)
    else:
        colour, shape = indices(prompts)
    mottle, grain = _roughness(finite, parts)
    return {
        "crisp": _crisp(parts, shape),
        "trim": _trim(parts, pose_of(parts, tilted, shape)),
        "even": _fall(mottle, _MOTTLED),
        "clean": _fall(grain, _GRAINY),
        "colour": _true_colour(parts, colour),
        "form": _form(parts, likeness[np.arange(len(shape)), shape]),
        "meant": _unrivalled(hues, colour) * _unrivalled(likeness, shape),
        "range": np.clip(1 - 5 * out_of_range(images), 0, 1),
    }


def aesthetic(images: Float[np.ndarray, "b h w 3"], prompts: Collection[str] | None = None) -> Float[np.ndarray, " b"]:
    """Computes how well images are drawn, form · meant · range · ⁵√(crisp · trim · even · clean · colour), in [0, 1].

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

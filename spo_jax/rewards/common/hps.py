"""The Human Preference Scores on the devices: their pixels, and the CLIP that both versions are."""

from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp

from spo_jax.core.resizing import center_crop, resize_antialias, resize_bicubic, shorter_side_size_cut, to_bytes
from spo_jax.core.typing import Array, Float, Params
from spo_jax.data.original_tokenizer import open_tokenizer
from spo_jax.data.tokenizer import AbstractTokenizer, Tokenizer
from spo_jax.nn.clip import CLIPModel
from spo_jax.nn.shapes import clip_shapes
from spo_jax.parallel.sharding import abstract_weights, place_weights
from spo_jax.rewards.common.clip_pixels import Pixels, openai_pixels
from spo_jax.rewards.common.clip_reward import CLIPReward
from spo_jax.rewards.common.clip_score import normalise
from spo_jax.rewards.common.hps_files import (
    DEFAULT,
    PUBLISHED_SIZES,
    VARIANTS,
    VERSIONS,
    check_version,
    find_tokenizer,
    read_sizes,
)
from spo_jax.rewards.common.protocol import Context
from spo_jax.rewards.common.published_file import find_file, local_file
from spo_jax.weights import kinds, open_clip, store


def antialiased_pixels(images: Float[Array, "b h w 3"], side: int) -> Float[Array, "b side side 3"]:
    """Does what HPSv2's transform does with torchvision 0.17 or newer, which resizes tensors with antialiasing.

    As in the original, nothing is clipped after the resize, which leaves [0, 1] at sharp edges.

    Args:
      images: images near [-1, 1].
      side: side of CLIP's input in pixels.
    """
    return _tensor_pixels(images, side, resize_antialias)


def plain_pixels(images: Float[Array, "b h w 3"], side: int) -> Float[Array, "b side side 3"]:
    """Does what HPSv2's transform does with torchvision up to 0.16: as `antialiased_pixels`, without antialiasing."""
    return _tensor_pixels(images, side, resize_bicubic)


def _tensor_pixels(images: Float[Array, "b h w 3"], side: int, resize: Callable[..., Array]) -> Array:
    unit = to_bytes(images).astype(jnp.float32) / 255
    return normalise(center_crop(resize(unit, shorter_side_size_cut(*images.shape[1:3], side)), side))


PIXELS: dict[str, Pixels] = {"antialias": antialiased_pixels, "no_antialias": plain_pixels, "pil": openai_pixels}


def load_hps(name: str, source: str, context: Context) -> CLIPReward:
    """Loads a version; every weight has to be there, and no other.

    Args:
      name: a key of `VERSIONS`.
      source: folder, file, hub id or one file of a hub repository; empty for the published one.
      context: variant, dtype and mesh, and whether to return shapes instead of weights.

    Raises:
      UserError: a file is missing or damaged, holds the weights of something else, or does not fit the others.
    """
    check_version(source, name)
    published = VERSIONS[name]
    if context.abstract:
        file = local_file(source, published)
        clip = CLIPModel(PUBLISHED_SIZES if file is None else read_sizes(file), dtype=context.dtype)
        params = abstract_weights(clip_shapes(clip), context.dtype, context.mesh)
        tokenizer: Tokenizer = AbstractTokenizer(clip.config.text.max_position_embeddings)
    else:
        file = find_file(source, published)
        clip = CLIPModel(read_sizes(file), dtype=context.dtype)
        tokenizer = open_tokenizer(find_tokenizer(file), "open_clip")
        tokenizer.check_is_of(clip.config.text.vocab_size, clip.config.text.max_position_embeddings, str(file))
        params = place_weights(_read_weights(file, clip), context.mesh, title=str(file))
    variant = context.variant or DEFAULT
    score = f"{name}_{context.variant}" if context.variant else name
    meaning = f"{published.what}: 100 · cos(image, prompt), as its benchmark gives it; {VARIANTS[variant]}"
    return CLIPReward(
        score,
        meaning,
        clip=clip,
        params=params,
        tokenizer=tokenizer,
        pixels=PIXELS[variant],
        formula=lambda cosine, scale: 100 * cosine,
    )


def _read_weights(file: Path, clip: CLIPModel) -> Params:
    state = store.read_file(file)
    kinds.check_weights_are(kinds.OPEN_CLIP, state, str(file))
    return open_clip.clip_tree(state, clip_shapes(clip), str(file), clip.dtype)

"""The score of a preference model that is a CLIP: pixels, features and the cosine between them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.resizing import center_crop, resize_bicubic, shorter_side_size
from spo_jax.core.typing import Array, Float, Int, Params
from spo_jax.nn.clip import CLIPModel
from spo_jax.parallel.chunks import in_chunks
from spo_jax.parallel.mesh import gathered

# CLIP's pixel statistics on [0, 1].
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_TEXT_CHUNK = 64  # number of prompts encoded at a time, in one compiled shape


def normalise(unit: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Converts pixels in [0, 1] to CLIP's input."""
    mean = jnp.asarray(CLIP_MEAN).reshape(1, 1, 1, 3)
    std = jnp.asarray(CLIP_STD).reshape(1, 1, 1, 3)
    return (unit - mean) / std


def pixel_values(images: Float[Array, "b h w 3"], side: int) -> Float[Array, "b side side 3"]:
    """Converts decoded images to CLIP's input.

    The shorter side is resized to ``side``, followed by a centre crop, a clamp and the normalisation. The resize works
    on [-1, 1] and the clamp comes after it, as in the reference's ``get_preference_score``.
    """
    images = images.astype(jnp.float32)
    resized = resize_bicubic(images, shorter_side_size(*images.shape[1:3], side))
    return normalise(jnp.clip(center_crop(resized, side) / 2 + 0.5, 0, 1))


def unit_norm(features: Float[Array, "b p"]) -> Float[Array, "b p"]:
    """Scales features to length 1, in float32."""
    features = features.astype(jnp.float32)
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def text_features(clip: CLIPModel, params: Params, ids: Int[Array, "b l"]) -> Float[Array, "b p"]:
    """Computes text features of unit length; they do not depend on a timestep, so once per prompt is enough."""
    return unit_norm(clip.apply({"params": params}, ids, method="encode_text"))


def encode_texts(clip: CLIPModel, params: Params, ids: Int[np.ndarray, "b l"]) -> Float[np.ndarray, "b p"]:
    """Computes `text_features` for any number of prompts, on the host.

    They are filled up to a power of two, so that counts that change from call to call need few programs.
    """
    size = min(1 << max(len(ids) - 1, 0).bit_length(), _TEXT_CHUNK)
    rows = np.minimum(np.arange(-(-len(ids) // size) * size), len(ids) - 1)
    return in_chunks(functools.partial(_encode_texts, clip, params), ids[rows], size)[: len(ids)]


@functools.partial(jax.jit, static_argnums=0)  # one function, so that a second call compiles nothing
def _encode_texts(clip: CLIPModel, params: Params, ids: Int[Array, "b l"]) -> Float[Array, "b p"]:
    # Texts are encoded once, so these products are in float32 on every device (see `docs/parity.md`).
    with jax.default_matmul_precision("highest"):
        return gathered(text_features(clip, params, ids))


def score_images(
    clip: CLIPModel,
    params: Params,
    images: Float[Array, "b h w 3"],
    t: Int[Array, " b"],
    text: Float[Array, "b p"],
) -> Float[Array, " b"]:
    """Computes exp(logit_scale) * cos(image, text) at timestep ``t``.

    Args:
      clip: network of the preference model.
      params: its weights.
      images: images in [-1, 1] of any size.
      t: diffusion timesteps.
      text: text features of unit length.
    """
    features = image_features(clip, params, images, t)
    return clip.apply({"params": params}, method="scale") * jnp.sum(features * text, axis=-1)


def image_features(
    clip: CLIPModel, params: Params, images: Float[Array, "b h w 3"], t: Int[Array, " b"]
) -> Float[Array, "b p"]:
    """Computes the image features of unit length that `score_images` compares with text."""
    pixels = pixel_values(images, clip.config.vision.image_size)
    return unit_norm(clip.apply({"params": params}, pixels, t, method="encode_image"))

"""Shapes of the weights of networks, computed without allocating them; weight files are read into these trees."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import ShapeDtypeStruct

from spo_jax.core.typing import Params
from spo_jax.nn.blip import BLIP
from spo_jax.nn.clip import CLIPModel, CLIPTextModel
from spo_jax.nn.tiny_vae import AutoencoderTiny
from spo_jax.nn.vae import AutoencoderKL

IDS = ShapeDtypeStruct((1, 1), jnp.int32)


def floats(*shape: int) -> ShapeDtypeStruct:
    """Returns an input of this shape."""
    return ShapeDtypeStruct(shape, jnp.float32)


def weight_shapes(network: nn.Module, *inputs: ShapeDtypeStruct) -> Params:
    """Returns the shapes of the weights of a network that is given such inputs, in a tree that may be changed."""
    return jax.tree.map(lambda leaf: leaf, _traced(network, *inputs))


@functools.lru_cache(maxsize=32)  # tracing takes up to seconds, and commands open the same model several times
def _traced(network: nn.Module, *inputs: ShapeDtypeStruct) -> Params:
    return jax.eval_shape(network.init, {}, *inputs)["params"]  # without a key, nothing is drawn


def vae_shapes(vae: AutoencoderKL | AutoencoderTiny) -> Params:
    """Returns the shapes of the weights of an autoencoder."""
    return weight_shapes(vae, floats(1, 64, 64, vae.config.in_channels))


def text_shapes(text_encoder: CLIPTextModel) -> Params:
    """Returns the shapes of the weights of a text encoder."""
    return weight_shapes(text_encoder, IDS)


def clip_shapes(clip: CLIPModel) -> Params:
    """Returns the shapes of the weights of a CLIP with both towers."""
    vision = clip.config.vision
    pixels = floats(1, vision.image_size, vision.image_size, vision.num_channels)
    t = (floats(1),) if clip.config.time_conditioned else ()
    return weight_shapes(clip, IDS, pixels, *t)


def blip_shapes(blip: BLIP) -> Params:
    """Returns the shapes of the weights of a BLIP with both of its parts."""
    size = blip.config.vision.image_size
    return weight_shapes(blip, IDS, ShapeDtypeStruct((1, 1), jnp.bool_), floats(1, size, size, 3))

"""Shapes of the weights of networks, computed without allocating them; weight files are read into these trees."""

import jax
import jax.numpy as jnp

from spo_jax.core.typing import Params
from spo_jax.nn.blip import BLIP
from spo_jax.nn.clip import CLIPModel, CLIPTextModel
from spo_jax.nn.tiny_vae import AutoencoderTiny
from spo_jax.nn.vae import AutoencoderKL


def vae_shapes(vae: AutoencoderKL | AutoencoderTiny) -> Params:
    """Returns the shapes of the weights of an autoencoder."""
    images = jnp.zeros((1, 64, 64, vae.config.in_channels))
    return jax.eval_shape(vae.init, jax.random.key(0), images)["params"]


def text_shapes(text_encoder: CLIPTextModel) -> Params:
    """Returns the shapes of the weights of a text encoder."""
    return jax.eval_shape(text_encoder.init, jax.random.key(0), jnp.zeros((1, 1), int))["params"]


def clip_shapes(clip: CLIPModel) -> Params:
    """Returns the shapes of the weights of a CLIP with both towers."""
    size = clip.config.vision.image_size
    ids = jnp.zeros((1, 1), int)
    pixels = jnp.zeros((1, size, size, clip.config.vision.num_channels))
    t = (jnp.zeros(1),) if clip.config.time_conditioned else ()
    return jax.eval_shape(clip.init, jax.random.key(0), ids, pixels, *t)["params"]


def blip_shapes(blip: BLIP) -> Params:
    """Returns the shapes of the weights of a BLIP with both of its parts."""
    size = blip.config.vision.image_size
    ids = jnp.zeros((1, 1), int)
    pixels = jnp.zeros((1, size, size, 3))
    return jax.eval_shape(blip.init, jax.random.key(0), ids, ids == 0, pixels)["params"]

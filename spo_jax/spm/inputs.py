"""What the preference model is trained on: clean predictions of noised pictures, as the resampler will show them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from spo_jax.core.images import resize_bicubic
from spo_jax.core.typing import Array, Float, Int, Key
from spo_jax.diffusion.ddim import add_noise, predict_x0
from spo_jax.diffusion.schedule import Schedule
from spo_jax.spm.score import normalise


class PairInputs(NamedTuple):
    """Pixels of both pictures of every pair, and the pair's timestep."""

    pixels: Float[Array, "n 2 side side 3"]
    t: Int[Array, " n"]


def training_pixels(images: Float[Array, "b h w 3"], side: int) -> Float[Array, "b side side 3"]:
    """As `spo_jax.spm.score.pixel_values`, but the reference clamps before AND after the resize when training, and
    resizes to a square without keeping the aspect."""
    unit = jnp.clip(images.astype(jnp.float32) / 2 + 0.5, 0, 1)
    return normalise(jnp.clip(resize_bicubic(unit, (side, side)), 0, 1))


def noised_predictions(
    key: Key, schedule: Schedule, denoise, decode, latents: Float[Array, "n 2 h w c"], t: Int[Array, " n"]
) -> Float[Array, "n 2 H W 3"]:
    """Pictures of x0 predicted from noised latents: ONE timestep and the SAME noise for both members of a pair.

    Args:
      denoise: (x [2n h w c], t [2n]) to guided prediction, rows pair by pair.
      decode: latents to pictures.
    """
    n = len(latents)
    noise = jax.random.normal(key, latents[:, 0].shape)
    flat = latents.reshape(2 * n, *latents.shape[2:])
    both_t = jnp.repeat(t, 2)
    x = add_noise(schedule, flat, jnp.repeat(noise, 2, axis=0), both_t)
    x0, _ = predict_x0(schedule, x, denoise(x, both_t), both_t)
    images = decode(x0)
    return images.reshape(n, 2, *images.shape[1:])

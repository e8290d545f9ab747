"""What the preference model is trained on: clean predictions of noised images, as the resampler will show them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from spo_jax.core.images import resize_bicubic
from spo_jax.core.typing import Array, Bool, Float, Int, Key
from spo_jax.diffusion.process import Process
from spo_jax.rewards.common.clip_score import normalise


class Draws(NamedTuple):
    """Everything that is random about a batch of pairs, drawn for the whole of it before it is cut.

    Attributes:
      t: timestep of each pair.
      noise: noise of both its images.
      posterior: noise for draws from the autoencoder's posterior, separate for both images; None takes its mean.
      flip: which pairs are mirrored; None mirrors none.
    """

    t: Int[Array, " n"]
    noise: Float[Array, "n h w c"]
    posterior: Float[Array, "n 2 h w c"] | None = None
    flip: Bool[Array, " n"] | None = None


def draw(
    key: Key, count: int, latent_shape: tuple[int, int, int], timesteps: int, power: float, sample: bool, flip: bool
) -> Draws:
    """The draws of ``count`` pairs.

    Args:
      timesteps: number of training timesteps; t = floor(timesteps · u^power), u uniform.
      sample: whether latents are draws from the posterior.
      flip: whether half of the pairs are mirrored.
    """
    t_key, noise_key, posterior_key, flip_key = jax.random.split(key, 4)
    u = jax.random.uniform(t_key, (count,))
    t = jnp.minimum(jnp.floor(timesteps * u**power), timesteps - 1).astype(jnp.int32)
    return Draws(
        t,
        jax.random.normal(noise_key, (count, *latent_shape)),
        jax.random.normal(posterior_key, (count, 2, *latent_shape)) if sample else None,
        jax.random.bernoulli(flip_key, 0.5, (count,)) if flip else None,
    )


def training_pixels(images: Float[Array, "b h w 3"], side: int) -> Float[Array, "b side side 3"]:
    """CLIP's input as the reference makes it in training.

    Unlike `spo_jax.rewards.common.clip_score.pixel_values` it clamps before AND after the resize, and resizes to a
    square without keeping the aspect.
    """
    unit = jnp.clip(images.astype(jnp.float32) / 2 + 0.5, 0, 1)
    return normalise(jnp.clip(resize_bicubic(unit, (side, side)), 0, 1))


def predictions(
    noise: Float[Array, "n h w c"],
    process: Process,
    denoise: Callable[[Array, Array], Array],
    decode: Callable[[Array], Array],
    latents: Float[Array, "n 2 h w c"],
    t: Int[Array, " n"],
) -> Float[Array, "n 2 H W 3"]:
    """Images of x0 predicted from noised latents: ONE timestep and the SAME noise for both members of a pair.

    Args:
      denoise: (x [2n h w c], t [2n]) to guided prediction, rows pair by pair.
      decode: latents to images.
    """
    n = len(latents)
    flat = latents.reshape(2 * n, *latents.shape[2:])  # [n 2 h w c] -> [2n h w c]
    both_t = jnp.repeat(t, 2)
    x = process.add_noise(flat, jnp.repeat(noise, 2, axis=0), both_t)
    x0, _ = process.split(x, denoise(x, both_t), both_t)
    images = decode(x0)
    return images.reshape(n, 2, *images.shape[1:])

"""What a latent reward model is trained on: noisy latents of labelled pairs, and their scores."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from spo_jax.core.typing import Array, Bool, Float, Int, Key, Params
from spo_jax.models.base import repeat_rows
from spo_jax.parallel.mesh import spread
from spo_jax.rewards.common.clip_score import unit_norm
from spo_jax.rewards.common.latent_model import LatentModel


class Draws(NamedTuple):
    """Everything random about a batch of pairs, drawn for the whole batch before it is cut into chunks.

    Attributes:
      t: timestep of each pair.
      noise: noise of each image; those of a pair differ.
      posterior: noise for draws from the autoencoder's posterior; None takes its mean.
      flip: whether to mirror each pair; None mirrors none.
    """

    t: Int[Array, " n"]
    noise: Float[Array, "n 2 h w c"]
    posterior: Float[Array, "n 2 h w c"] | None = None
    flip: Bool[Array, " n"] | None = None


class LatentPairs(NamedTuple):
    """A batch of labelled pairs of noisy latents.

    Attributes:
      x: noisy latents of both images.
      t: timestep of each pair, or of both images.
      ids: tokens of each pair's prompt, for every text encoder.
      labels: (1, 0), (0, 1), or (½, ½) for a tie.
      weights: weights in proportion to 1 / (number of pairs with the same prompt), which sum to 1 over the whole batch.
    """

    x: Float[Array, "n 2 h w c"]
    t: Int[Array, " n"] | Int[Array, "n 2"]
    ids: Int[Array, "n e l"]
    labels: Float[Array, "n 2"]
    weights: Float[Array, " n"]


def draw(key: Key, count: int, latent_shape: tuple[int, int, int], timesteps: range, sample: bool, flip: bool) -> Draws:
    """Draws everything random about a batch of pairs.

    Args:
      key: key of the batch.
      count: number of pairs.
      latent_shape: (h, w, c).
      timesteps: the timesteps, all equally likely.
      sample: whether latents are draws from the autoencoder's posterior; otherwise they are its mean.
      flip: whether to mirror half of the pairs.
    """
    t_key, noise_key, posterior_key, flip_key = jax.random.split(key, 4)
    return Draws(
        timesteps.start + timesteps.step * jax.random.randint(t_key, (count,), 0, len(timesteps)),
        jax.random.normal(noise_key, (count, 2, *latent_shape)),
        jax.random.normal(posterior_key, (count, 2, *latent_shape)) if sample else None,
        jax.random.bernoulli(flip_key, 0.5, (count,)) if flip else None,
    )


def pair_scores(
    model: LatentModel, params: Params, batch: LatentPairs, empty: Int[Array, "1 e l"]
) -> Float[Array, "n 2"]:
    """Scores both images of every pair, in one call of the network.

    Args:
      model: the networks.
      params: their weights.
      batch: the pairs.
      empty: tokens of the empty prompt, which is encoded by the weights in training too.
    """
    n = len(batch.t)
    text = model.encode_text(params, batch.ids)
    nothing = model.encode_text(params, empty).condition
    x = batch.x.reshape(2 * n, *batch.x.shape[2:])  # [n 2 h w c] -> [2n h w c]
    condition = spread(repeat_rows(text.condition, 2))
    t = jnp.broadcast_to(batch.t.reshape(n, -1), (n, 2)).reshape(-1)
    image = unit_norm(model.image_features(params, x, t, condition, nothing))
    cosines = jnp.sum(image.reshape(n, 2, -1) * unit_norm(text.features)[:, None], axis=-1)
    return jnp.exp(params["logit_scale"].astype(jnp.float32)) * cosines

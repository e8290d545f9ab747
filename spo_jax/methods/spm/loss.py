"""Scores of a batch of preference pairs."""

from typing import NamedTuple

import jax.numpy as jnp

from spo_jax.core.typing import Array, Float, Int, Params
from spo_jax.nn.clip import CLIPModel
from spo_jax.rewards.common.clip_score import text_features, unit_norm


class PairBatch(NamedTuple):
    """A batch of preference pairs.

    Attributes:
      pixels: CLIP's input for both images.
      t: timestep of each pair.
      ids: tokens of each pair's prompt.
      labels: (1, 0), (0, 1), or (½, ½) for a tie.
      weights: weights in proportion to 1 / (number of pairs with the same prompt), which sum to 1 over the whole batch.
    """

    pixels: Float[Array, "n 2 h w 3"]
    t: Int[Array, " n"]
    ids: Int[Array, "n l"]
    labels: Float[Array, "n 2"]
    weights: Float[Array, " n"]


def pair_scores(clip: CLIPModel, params: Params, batch: PairBatch) -> Float[Array, "n 2"]:
    """Scores both images of every pair, in one call of the vision tower.

    Args:
      clip: the preference model's network.
      params: its weights.
      batch: the pairs.
    """
    n = len(batch.t)
    text = text_features(clip, params, batch.ids)
    pixels = batch.pixels.reshape(2 * n, *batch.pixels.shape[2:])  # [n 2 h w 3] -> [2n h w 3]
    image = clip.apply({"params": params}, pixels, jnp.repeat(batch.t, 2), method="encode_image")
    image = unit_norm(image).reshape(n, 2, -1)  # [2n p] -> [n 2 p]
    return clip.apply({"params": params}, method="scale") * jnp.sum(image * text[:, None], axis=-1)

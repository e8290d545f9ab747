"""Scores, loss and accuracy of a batch of preference pairs.

The loss is the reference's ``SPMCriterion`` without in-batch negatives.
"""

from typing import NamedTuple

import jax
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


def pair_losses(scores: Float[Array, "n 2"], labels: Float[Array, "n 2"]) -> Float[Array, " n"]:
    """Computes the cross entropy of each pair's two scores, plus log ½ for ties, so that a perfect tie costs 0."""
    entropy = -jnp.sum(labels * jax.nn.log_softmax(scores.astype(jnp.float32), axis=-1), axis=-1)
    return entropy + jnp.where(labels[:, 0] == labels[:, 1], jnp.log(0.5), 0.0)


def pair_accuracy(
    scores: Float[Array, "n 2"], labels: Float[Array, "n 2"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Compares the order of each pair's scores with its label.

    Returns:
      For each pair, whether the preferred image scores higher (1, ½ for equal scores, or 0; also 0 if the label is a
      tie); and 1 if the label is not a tie, otherwise 0.
    """
    decided = (labels[:, 0] != labels[:, 1]).astype(jnp.float32)
    right = 0.5 * (1 + jnp.sign(scores[:, 0] - scores[:, 1]) * jnp.sign(labels[:, 0] - labels[:, 1]))
    return right * decided, decided

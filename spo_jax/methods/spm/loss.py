"""A batch of preference pairs: its scores, its loss and its accuracy.

The loss is the reference's ``SPMCriterion``, without in-batch negatives.
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
      t: the pair's timestep.
      ids: tokens of the prompt.
      labels: (1, 0), (0, 1), or (½, ½) for a tie.
      weights: 1 / (number of pairs of that prompt), summing to 1 over all pairs of an optimizer step.
    """

    pixels: Float[Array, "n 2 h w 3"]
    t: Int[Array, " n"]
    ids: Int[Array, "n l"]
    labels: Float[Array, "n 2"]
    weights: Float[Array, " n"]


def pair_scores(clip: CLIPModel, params: Params, batch: PairBatch) -> Float[Array, "n 2"]:
    """Scores of both images of every pair, in one call of the vision tower."""
    n = len(batch.t)
    text = text_features(clip, params, batch.ids)
    pixels = batch.pixels.reshape(2 * n, *batch.pixels.shape[2:])
    image = clip.apply({"params": params}, pixels, jnp.repeat(batch.t, 2), method="encode_image")
    image = unit_norm(image).reshape(n, 2, -1)
    return clip.apply({"params": params}, method="scale") * jnp.sum(image * text[:, None], axis=-1)


def pair_losses(scores: Float[Array, "n 2"], labels: Float[Array, "n 2"]) -> Float[Array, " n"]:
    """Cross entropy of each pair's two scores; log ½ is added for ties, so that a perfect tie costs 0."""
    entropy = -jnp.sum(labels * jax.nn.log_softmax(scores.astype(jnp.float32), axis=-1), axis=-1)
    return entropy + jnp.where(labels[:, 0] == labels[:, 1], jnp.log(0.5), 0.0)


def pair_accuracy(
    scores: Float[Array, "n 2"], labels: Float[Array, "n 2"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Whether the preferred image scores higher (equal scores count half), and 1 for pairs that are not ties."""
    decided = (labels[:, 0] != labels[:, 1]).astype(jnp.float32)
    right = 0.5 * (1 + jnp.sign(scores[:, 0] - scores[:, 1]) * jnp.sign(labels[:, 0] - labels[:, 1]))
    return right * decided, decided

"""Loss and accuracy of the scores of labelled pairs.

The loss is the reference's ``SPMCriterion`` without in-batch negatives, and that of latent reward models.
"""

import jax
import jax.numpy as jnp

from spo_jax.core.typing import Array, Float


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

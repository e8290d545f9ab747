"""Gradients of a batch that does not fit in memory at once, summed over its chunks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spo_jax.core.typing import Array, Int, Params, PyTree

# Function from (weights, chunk) to (loss, metrics), both summed over the chunk's rows.
ChunkLoss = Callable[[Params, Any], tuple[Array, PyTree]]


def chunked_gradients(
    loss: ChunkLoss,
    params: Params,
    chunk_at: Callable[[Int[Array, ""]], Any],
    count: int | Int[Array, ""],
    zero_metrics: PyTree,
    constrain: Callable[[Params], Params] = lambda tree: tree,
) -> tuple[PyTree, Params]:
    """Computes metrics and gradients of a batch in one loop on the device, with one chunk in memory at a time.

    Args:
      loss: loss of a chunk, whose gradient is taken with respect to the weights.
      params: the weights.
      chunk_at: function from an index to that chunk; rows that do not count have weight 0 in the loss.
      count: number of chunks to compute; it may be a traced value.
      zero_metrics: zeros in the shapes of the metrics.
      constrain: gives gradients the sharding of their weights.

    Returns:
      The metrics and the gradients, both summed over the chunks.
    """
    gradient = jax.grad(loss, has_aux=True)

    def body(index: Array, sums: PyTree) -> PyTree:
        gradients, metrics = gradient(params, chunk_at(index))
        return jax.tree.map(jnp.add, sums, (metrics, constrain(gradients)))

    zeros = zero_metrics, constrain(jax.tree.map(jnp.zeros_like, params))
    return jax.lax.fori_loop(0, count, body, zeros)

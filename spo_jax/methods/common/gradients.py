"""Gradients of a batch that does not fit in memory at once, summed over its chunks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spo_jax.core.typing import Array, Int, Params, PyTree

# (weights, a chunk) to (loss, metrics), both summed over the chunk's rows.
ChunkLoss = Callable[[Params, Any], tuple[Array, PyTree]]


def chunked_gradients(
    loss: ChunkLoss,
    params: Params,
    chunk_at: Callable[[Int[Array, ""]], Any],
    count: int | Int[Array, ""],
    zero_metrics: PyTree,
    constrain: Callable[[Params], Params] = lambda tree: tree,
) -> tuple[PyTree, Params]:
    """Metrics and gradients of a batch: one loop on the device with one chunk in memory at a time.

    Args:
      loss: its gradient is taken with respect to the weights.
      chunk_at: the chunk of an index; rows that do not count have weight 0 in the loss.
      count: number of chunks; further ones are not computed.
      zero_metrics: zeros of the metrics' shapes.
      constrain: keeps gradients where their weights lie.

    Returns:
      (metrics, gradients), sums over the chunks.
    """
    gradient = jax.grad(loss, has_aux=True)

    def body(index: Array, sums: PyTree) -> PyTree:
        gradients, metrics = gradient(params, chunk_at(index))
        return jax.tree.map(jnp.add, sums, (metrics, constrain(gradients)))

    zeros = zero_metrics, constrain(jax.tree.map(jnp.zeros_like, params))
    return jax.lax.fori_loop(0, count, body, zeros)

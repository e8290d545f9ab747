"""Classifier-free guidance (arXiv 2207.12598)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from spo_jax.core.typing import Array, Float, Num, PyTree


def guided(
    predict: Callable[[Float[Array, "b h w c"], Num[Array, " b"], PyTree], Float[Array, "b h w c"]],
    x: Float[Array, "b h w c"],
    t: Num[Array, " b"],
    condition: PyTree,
    unconditional: PyTree,
    scale: int | float | Float[Array, ""],
) -> Float[Array, "b h w c"]:
    """Computes ``uncond + scale · (cond - uncond)`` with both halves in one call of the network.

    Where the scale is known to be 1, ``uncond`` is in no need, and the network sees half the rows.

    Args:
      predict: function of (latents, timesteps, condition) that returns a prediction.
      x: noisy latents.
      t: timesteps.
      condition: tree of arrays with leading axis b.
      unconditional: tree of the same structure, from which guidance leads away.
      scale: guidance scale; 1 leaves the conditional prediction unchanged, 0 drops the condition. An array may have
        any value, so that one program serves all scales.

    Returns:
      The guided prediction in float32.
    """
    if isinstance(scale, int | float) and scale == 1:
        return predict(x, t, condition).astype(jnp.float32)
    both = predict(*interleaved((x, t, unconditional), (x, t, condition)))
    both = both.astype(jnp.float32).reshape(-1, 2, *both.shape[1:])  # [2b h w c] -> [b 2 h w c]
    without = both[:, 0]
    with_text = both[:, 1]
    return without + scale * (with_text - without)


def interleaved(first: PyTree, second: PyTree) -> PyTree:
    """Joins two batches, [b ...] and [b ...] -> [2b ...], row by row.

    The two halves of a row lie side by side, so that a batch that is cut over devices is not moved between them.
    """
    return jax.tree.map(lambda a, b: jnp.stack([a, b], 1).reshape(-1, *a.shape[1:]), first, second)

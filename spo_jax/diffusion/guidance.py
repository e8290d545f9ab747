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
    scale: float,
) -> Float[Array, "b h w c"]:
    """``uncond + scale · (cond - uncond)`` with both halves in one call of the network.

    Args:
      predict: (latents, timesteps, condition) to prediction.
      condition, unconditional: trees of arrays with leading axis b.
      scale: 1 leaves the condition alone, 0 drops it.

    Returns:
      The guided prediction, float32.
    """
    # The two of a row side by side: a batch that is cut over devices is not moved between them.
    twice = lambda a, b: jnp.stack([a, b], 1).reshape(-1, *a.shape[1:])  # noqa: E731
    both = predict(twice(x, x), twice(t, t), jax.tree.map(twice, unconditional, condition))
    both = both.astype(jnp.float32).reshape(-1, 2, *both.shape[1:])
    without, with_text = both[:, 0], both[:, 1]
    return without + scale * (with_text - without)

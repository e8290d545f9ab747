"""Long lists through programs of one shape."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def in_chunks(function: Callable[[jax.Array], Any], rows: np.ndarray, chunk: int) -> Any:
    """``function`` over ``rows``, ``chunk`` at a time.

    The last chunk is filled up with its last row, so that one shape is compiled whatever the length.

    Returns:
      The results, a tree of arrays, joined along the first axis and cut to the number of rows.
    """
    parts = []
    for start in range(0, len(rows), chunk):
        index = np.minimum(np.arange(start, start + chunk), len(rows) - 1)
        parts.append(function(jnp.asarray(rows[index])))
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays)[: len(rows)], *parts)

"""Long lists through programs of one shape."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def in_chunks(function: Callable[[np.ndarray], Any], rows: np.ndarray, chunk: int) -> Any:
    """``function`` over ``rows``, ``chunk`` at a time.

    The last of several chunks is filled up with its last row, so that one shape is compiled.

    Returns:
      The results, a tree of numpy arrays, joined along the first axis and cut to the number of rows.
    """
    chunk, parts = min(chunk, len(rows)), []
    for start in range(0, len(rows), chunk):
        index = np.minimum(np.arange(start, start + chunk), len(rows) - 1)
        parts.append(jax.tree.map(np.asarray, function(rows[index])))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(rows)], *parts)

"""Rows of trees of arrays."""

from typing import Any

import jax
import numpy as np

from spo_jax.core.typing import Array, Int


def take_rows(tree: Any, index: Int[Array | np.ndarray, " n"]) -> Any:
    """Takes the rows ``index`` of every array of ``tree``."""
    return jax.tree.map(lambda x: x[index], tree)

"""Rows of trees of arrays."""

from typing import Any

import jax
import numpy as np

from spo_jax.core.typing import Array, Int, Num


def joined_rows(x: Num[Array | np.ndarray, "a b ..."]) -> Num[Array | np.ndarray, "n ..."]:
    """Joins the first two axes, such as pairs and the two images of each, [a b ...] -> [a·b ...]."""
    return x.reshape(-1, *x.shape[2:])


def take_rows(tree: Any, index: Int[Array | np.ndarray, " n"]) -> Any:
    """Takes the rows ``index`` of every array of ``tree``."""
    return jax.tree.map(lambda x: x[index], tree)

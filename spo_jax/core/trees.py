"""Conversion of nested dicts to flat ones and back."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from spo_jax.core.typing import Array, Int


def flatten(tree: Mapping[str, Any], sep: str = "/") -> dict[str, Any]:
    """Flattens ``{"a": {"b": 1}}`` to ``{"a/b": 1}``, with sorted keys, so that listings and hashes are stable."""
    return dict(sorted(traverse_util.flatten_dict(tree, sep=sep).items()))


def unflatten(flat: Mapping[str, Any], sep: str = "/") -> dict[str, Any]:
    """Nests ``{"a/b": 1}`` to ``{"a": {"b": 1}}``, the inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep=sep)


def take_rows(tree: Any, index: Int[Array | np.ndarray, " n"]) -> Any:
    """Takes the rows ``index`` of every array of ``tree``."""
    return jax.tree.map(lambda x: x[index], tree)

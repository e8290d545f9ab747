"""Conversion of nested dicts to flat ones and back.

flax is imported by the functions: what only reads files and names has nothing else of it, and it imports jax.
"""

from collections.abc import Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], sep: str = "/") -> dict[str, Any]:
    """Flattens ``{"a": {"b": 1}}`` to ``{"a/b": 1}``, with sorted keys, so that listings and hashes are stable."""
    from flax import traverse_util

    return dict(sorted(traverse_util.flatten_dict(tree, sep=sep).items()))


def unflatten(flat: Mapping[str, Any], sep: str = "/") -> dict[str, Any]:
    """Nests ``{"a/b": 1}`` to ``{"a": {"b": 1}}``, the inverse of `flatten`."""
    from flax import traverse_util

    return traverse_util.unflatten_dict(dict(flat), sep=sep)

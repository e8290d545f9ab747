"""A digest of weights, which identifies what a cache was computed with."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from spo_jax.core.trees import flatten
from spo_jax.parallel.sharding import to_host


def weights_digest(tree: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of the names, types, shapes and values of a tree of arrays, wherever the arrays are.

    Every process has to call it.
    """
    digest = hashlib.sha256()
    for path, leaf in flatten(tree).items():
        array = np.asarray(to_host(leaf), order="C")  # One at a time: the host need not hold all of them.
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()

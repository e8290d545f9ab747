"""Fingerprints of weights: cheap enough to be taken whenever several processes read the same ones."""

import hashlib
from typing import Any

import numpy as np

from spo_jax.core.trees import flatten

_SAMPLE = 65_536  # values of an array that enter its fingerprint


def fingerprints(tree: Any) -> dict[str, str]:
    """Describes every array of a tree on the host, by path: dtype, shape, and a digest of values throughout the array.

    Other weights have other fingerprints, but a few values that were changed on purpose may go unnoticed.
    """
    return {path: _fingerprint(np.asarray(leaf)) for path, leaf in flatten(tree).items()}


def _fingerprint(x: np.ndarray) -> str:
    values = x.reshape(-1)[:: max(1, x.size // _SAMPLE)]
    digest = hashlib.sha256(np.ascontiguousarray(values).view(np.uint8).data).hexdigest()
    return f"{x.dtype}[{','.join(map(str, x.shape))}] with digest {digest[:8]}"

"""Work cut into chunks: long lists on the host, and batches that do not fit in memory at once on the devices."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Array, PyTree
from spo_jax.parallel.mesh import devices_in_context, spread


def in_chunks(function: Callable[[np.ndarray], Any], rows: np.ndarray, chunk: int) -> Any:
    """Applies ``function`` to ``rows`` on the host, ``chunk`` at a time.

    The last of several chunks is filled up with its last row, so that one shape is compiled.

    Returns:
      The results, a tree of numpy arrays, joined along the first axis and cut to the number of rows.
    """
    chunk = min(chunk, len(rows))
    parts = []
    for start in range(0, len(rows), chunk):
        index = np.minimum(np.arange(start, start + chunk), len(rows) - 1)
        parts.append(jax.tree.map(np.asarray, function(rows[index])))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(rows)], *parts)


def padded_chunk(batch: int, per_device: int, devices: int) -> int:
    """Rows in memory at a time, on all devices together, where the last chunk may be padded: equal parts of ``batch``.

    Args:
      per_device: the most rows that a device may have in memory.
    """
    parts = math.ceil(batch / (per_device * devices))
    return math.ceil(batch / (parts * devices)) * devices


def even_chunk(batch: int, per_device: int, devices: int) -> int:
    """Rows in memory at a time, on all devices together, without padding: the largest share that cuts ``batch`` evenly.

    Args:
      batch: a multiple of ``devices``.
      per_device: the most rows that a device may have in memory.
    """
    share = batch // devices
    return devices * max(size for size in range(1, min(per_device, share) + 1) if share % size == 0)


def cut(tree: PyTree, chunk: int) -> PyTree:
    """[n ...] -> [parts chunk ...], every part with rows of every device, so that none has to be moved.

    Rows change their order; `joined` puts them back.
    """
    devices = devices_in_context()

    def split(x: Array) -> Array:
        x = x.reshape(devices, -1, chunk // devices, *x.shape[1:])  # [n ...] -> [devices parts share ...]
        return jnp.swapaxes(x, 0, 1).reshape(-1, chunk, *x.shape[3:])  # -> [parts devices·share ...]

    return spread(jax.tree.map(split, tree), axis=1)


def joined(x: Array) -> Array:
    """[parts chunk ...] -> [n ...], the inverse of `cut`."""
    devices = devices_in_context()
    parts, chunk = x.shape[:2]
    x = x.reshape(parts, devices, chunk // devices, *x.shape[2:])
    return jnp.swapaxes(x, 0, 1).reshape(parts * chunk, *x.shape[3:])

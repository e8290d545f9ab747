"""Work cut into chunks: long lists on the host, and batches on the devices that do not fit in memory at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Array, PyTree
from spo_jax.parallel.mesh import devices_in_context, spread


def in_chunks(function: Callable[[np.ndarray], Any], rows: np.ndarray, chunk: int) -> Any:
    """Applies ``function`` to ``rows`` on the host, ``chunk`` rows at a time.

    The last of several chunks is filled up with its last row, so that only one shape is compiled.

    Args:
      function: function of some rows that returns a tree of arrays with the same leading axis.
      rows: array on the host.
      chunk: number of rows at a time; fewer rows than that are not filled up.

    Returns:
      The results, a tree of numpy arrays, joined along the first axis and cut to the number of rows.
    """
    chunk = min(chunk, len(rows))
    parts = []
    for start in range(0, len(rows), chunk):
        index = np.minimum(np.arange(start, start + chunk), len(rows) - 1)
        parts.append(jax.tree.map(np.asarray, function(rows[index])))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(rows)], *parts)


def cut(tree: PyTree, chunk: int) -> PyTree:
    """Cuts a batch into parts, [n ...] -> [parts chunk ...].

    Every part holds rows of every device, so that no row has to be moved between devices. Rows change their order;
    `joined` restores it.

    Args:
      tree: arrays with a leading axis of rows.
      chunk: rows of a part, over all devices.
    """
    devices = devices_in_context()

    def split(x: Array) -> Array:
        x = x.reshape(devices, -1, chunk // devices, *x.shape[1:])  # [n ...] -> [devices parts share ...]
        return jnp.swapaxes(x, 0, 1).reshape(-1, chunk, *x.shape[3:])  # -> [parts devices·share ...]

    return spread(jax.tree.map(split, tree), axis=1)


def joined(x: Array) -> Array:
    """Joins the parts of a batch, [parts chunk ...] -> [n ...], the inverse of `cut`."""
    devices = devices_in_context()
    parts, chunk = x.shape[:2]
    x = x.reshape(parts, devices, chunk // devices, *x.shape[2:])  # -> [parts devices share ...]
    return jnp.swapaxes(x, 0, 1).reshape(parts * chunk, *x.shape[3:])  # -> [devices·parts·share ...]

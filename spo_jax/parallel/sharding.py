"""Placement of arrays on a mesh: frozen weights by a table of rules, other arrays from copies in every process."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spo_jax.core.trees import flatten, unflatten
from spo_jax.core.typing import DType, PyTree
from spo_jax.parallel.agreement import check_equal
from spo_jax.parallel.fingerprint import fingerprints
from spo_jax.parallel.mesh import replicated

# (regex, axes): the first regex that is found in a weight's path decides. Axes are aligned with the last axes of the
# array: ("fsdp",) cuts the outputs both of a dense kernel [in out] and of a convolution [h w in out].
Rules = Sequence[tuple[str, tuple[str | None, ...]]]
FSDP_RULES: Rules = (
    (r"(kernel|embedding)$", ("fsdp",)),
    (r"", ()),  # norms, biases and scalars, which are small
)


def shardings(tree: PyTree, mesh: Mesh, rules: Rules = FSDP_RULES, title: str = "weights") -> PyTree:
    """Returns a sharding for every leaf of ``tree``, by the first rule that matches its path.

    An axis that the mesh does not divide stays whole. The decisions are logged, one line per rule.

    Args:
      tree: arrays or shapes.
      mesh: the mesh on which they lie.
      rules: the table of rules.
      title: name of the tree in the log.
    """
    counts = [[0, 0] for _ in rules]
    flat = {}
    for path, leaf in flatten(tree).items():
        number = next(index for index, (pattern, _) in enumerate(rules) if re.search(pattern, path))
        spec = _aligned(rules[number][1], leaf.shape, mesh)
        counts[number][bool(spec)] += 1
        flat[path] = NamedSharding(mesh, spec)
    if mesh.shape["fsdp"] > 1:
        for (pattern, axes), (whole, cut) in zip(rules, counts, strict=True):
            logging.info("%s: %r -> %s: %d arrays cut, %d whole", title, pattern, axes, cut, whole)
    return unflatten(flat)


def _aligned(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    if len(axes) > len(shape):
        return PartitionSpec()
    full = (None,) * (len(shape) - len(axes)) + axes
    cut = [
        axis if axis and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(full, shape, strict=True)
    ]
    return PartitionSpec(*cut) if any(cut) else PartitionSpec()


def place_weights(tree: PyTree, mesh: Mesh | None, title: str = "weights") -> PyTree:
    """Places frozen weights from the host on the mesh by `FSDP_RULES`, or on the first device without a mesh.

    Raises:
      UserError: several processes have read different weights.
    """
    if mesh is None:
        return jax.device_put(tree)
    if jax.process_count() > 1:
        check_equal({f"{title}: {path}": text for path, text in fingerprints(tree).items()})
    return jax.tree.map(_put, tree, shardings(tree, mesh, title=title))


def abstract_weights(shapes: PyTree, dtype: DType, mesh: Mesh | None) -> PyTree:
    """Returns shapes of frozen weights as `place_weights` places them, in ``dtype``; scalars keep their own dtype."""

    def weight(shape: jax.ShapeDtypeStruct, sharding: NamedSharding | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, dtype if shape.shape else shape.dtype, sharding=sharding)

    if mesh is None:
        return jax.tree.map(lambda shape: weight(shape, None), shapes)
    return jax.tree.map(weight, shapes, shardings(shapes, mesh))


def place(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Places host arrays, the same in every process, on the mesh; each process provides what its devices need."""
    return jax.tree.map(lambda x: _put(x, sharding), tree)


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def shapes_of(tree: PyTree, sharding: NamedSharding | None = None) -> PyTree:
    """Returns the shapes of arrays (or of shapes), with the given sharding or, for arrays on a mesh, their own."""

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        own = getattr(x, "sharding", None)
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding or (own if isinstance(own, NamedSharding) else None)
        )

    return jax.tree.map(shape, tree)


def with_shardings(shapes: PyTree, tree: PyTree) -> PyTree:
    """Adds the shardings in a tree of the same structure to shapes."""
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, tree)


def make(function: Callable[..., PyTree], mesh: Mesh, *arguments: Any) -> PyTree:
    """Computes ``function``, with results that are whole on every device; all processes make the same call."""
    return jax.jit(function, out_shardings=replicated(mesh))(*arguments)


def to_host(tree: PyTree) -> PyTree:
    """Copies arrays that lie anywhere on the mesh to numpy arrays, in every process."""

    def fetch(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            x = make(lambda x: x, x.sharding.mesh, x)
        return np.asarray(x)

    return jax.tree.map(fetch, tree)

"""Arrays on a mesh: frozen weights by a table of rules, batches and states from copies that every process holds."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spo_jax.core.trees import flatten, unflatten
from spo_jax.core.typing import DType, PyTree
from spo_jax.parallel.mesh import replicated

# (regex, axes): the first that is found in a weight's path wins. Axes are aligned with the last axes of the array:
# ("fsdp",) cuts the outputs of a dense kernel [in out] and of a convolution [h w in out] alike.
Rules = Sequence[tuple[str, tuple[str | None, ...]]]
FSDP_RULES: Rules = (
    (r"(kernel|embedding)$", ("fsdp",)),
    (r"", ()),  # norms, biases, lone numbers: small
)


def shardings(tree: PyTree, mesh: Mesh, rules: Rules = FSDP_RULES, title: str = "weights") -> PyTree:
    """A sharding for every leaf of ``tree`` (arrays or shapes), by the first rule that matches its path.

    An axis that the mesh does not divide stays whole. What was decided is logged, a line per rule.
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
    """Frozen weights from the host onto the mesh by `FSDP_RULES`; onto the first device without a mesh."""
    if mesh is None:
        return jax.device_put(tree)
    return jax.tree.map(_put, tree, shardings(tree, mesh, title=title))


def abstract_weights(shapes: PyTree, dtype: DType, mesh: Mesh | None) -> PyTree:
    """Shapes of frozen weights as `place_weights` lays them: in ``dtype`` (scalars keep theirs), by `FSDP_RULES`."""

    def weight(shape: jax.ShapeDtypeStruct, sharding: NamedSharding | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape.shape, dtype if shape.shape else shape.dtype, sharding=sharding)

    if mesh is None:
        return jax.tree.map(lambda shape: weight(shape, None), shapes)
    return jax.tree.map(weight, shapes, shardings(shapes, mesh))


def place(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Host arrays, the same in every process, onto the mesh; each process hands over what its devices need."""
    return jax.tree.map(lambda x: _put(x, sharding), tree)


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def shapes_of(tree: PyTree, sharding: NamedSharding | None = None) -> PyTree:
    """Shapes of arrays (or of shapes), with the sharding given or, on a mesh, their own."""

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        own = getattr(x, "sharding", None)
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding or (own if isinstance(own, NamedSharding) else None)
        )

    return jax.tree.map(shape, tree)


def with_shardings(shapes: PyTree, tree: PyTree) -> PyTree:
    """Shapes with the shardings of a tree of the same structure."""
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, tree)


def make(function: Callable[..., PyTree], mesh: Mesh, *arguments: Any) -> PyTree:
    """What ``function`` computes, whole on every device of the mesh; all processes call it alike."""
    return jax.jit(function, out_shardings=replicated(mesh))(*arguments)


def to_host(tree: PyTree) -> PyTree:
    """Numpy arrays of arrays that lie anywhere on the mesh, in every process."""

    def fetch(x: Any) -> np.ndarray:
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            x = make(lambda x: x, x.sharding.mesh, x)
        return np.asarray(x)

    return jax.tree.map(fetch, tree)

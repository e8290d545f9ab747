"""The layout of trees: the dtype and shape of every leaf as text, which a checkpoint holds beside its arrays."""

import re
from collections.abc import Mapping
from typing import Any

import jax

from spo_jax.core.errors import UserError
from spo_jax.core.trees import unflatten
from spo_jax.core.typing import PyTree
from spo_jax.core.words import differences

Layout = dict[str, str]  # path of a leaf, such as ``to_q/lora_A``, to its dtype and shape, such as ``float32[4,8]``
_KEYS = ("threefry2x32", "rbg", "unsafe_rbg")  # the kinds of typed PRNG keys that jax has


def layouts(items: Mapping[str, PyTree]) -> dict[str, Layout]:
    """Returns the layout of every item, which is a tree of arrays or of shapes."""
    return {name: _layout(tree) for name, tree in items.items()}


def shapes_of_layout(layout: Layout) -> dict[str, Any]:
    """Returns a nested dict of `jax.ShapeDtypeStruct`, the inverse of `layouts` for an item that is a nested dict."""
    return unflatten({path: _shape(text) for path, text in layout.items()})


def check_layouts(where: Any, saved: Mapping[str, Layout], wanted: Mapping[str, Layout]) -> None:
    """Compares the layouts of a checkpoint's items with those that are wanted.

    Args:
      where: the checkpoint, for the message.
      saved: the layouts that it holds.
      wanted: the layouts that it should have.

    Raises:
      UserError: they differ; the message names up to three leaves.
    """
    found = differences(_flat(saved), _flat(wanted), ("there", "here"))
    if found:
        raise UserError(f"checkpoint {where} is of another model or other settings: {found}")


def _layout(tree: PyTree) -> Layout:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    name = jax.tree_util.keystr
    return {
        name(path, simple=True, separator="/"): f"{leaf.dtype}[{','.join(str(size) for size in leaf.shape)}]"
        for path, leaf in leaves
    }


def _flat(items: Mapping[str, Layout]) -> Layout:
    return {f"{name}/{path}": text for name, layout in items.items() for path, text in layout.items()}


def _shape(text: str) -> jax.ShapeDtypeStruct:
    dtype, sizes = re.fullmatch(r"([\w<>]+)\[([\d,]*)\]", text).groups()
    return jax.ShapeDtypeStruct(tuple(int(size) for size in sizes.split(",") if size), _dtype(dtype))


def _dtype(name: str) -> Any:
    """Returns the dtype of that name; those of typed PRNG keys are named like ``key<fry>``."""
    if not name.startswith("key<"):
        return name
    dtypes = (jax.eval_shape(lambda kind=kind: jax.random.key(0, impl=kind)).dtype for kind in _KEYS)
    return next(dtype for dtype in dtypes if str(dtype) == name)

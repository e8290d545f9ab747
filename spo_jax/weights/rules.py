"""The one rule between torch's flat names and a tree of given shapes, and between their layouts.

Names: the key is split at its dots, and an integer part joins the part before it with an underscore
(``down_blocks.0.attentions.1.proj_in.weight`` -> ``down_blocks_0/attentions_1/proj_in/kernel``). The last part
``weight`` becomes ``kernel``, ``scale`` or ``embedding``, whichever the tree has there; every other one keeps its name.
Layouts of kernels, by rank: [out in] <-> [in out], [out in w] <-> [w in out], OIHW <-> HWIO; nothing else is turned.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten, unflatten
from spo_jax.weights.messages import shorten

# (pattern, replacement) on torch keys; the first pattern that is found in a key is applied, the others are not tried.
Renames = Sequence[tuple[str, str]]

_WEIGHT_LEAVES = ("kernel", "scale", "embedding")
_TO_TREE = {2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0)}
_TO_TORCH = {2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1)}
# Names that end in "_<n>" in torch itself (TimestepEmbedding); everywhere else "_<n>" stands for ".<n>".
_LITERAL_PARTS = frozenset({"linear_1", "linear_2"})


def module_path(name: str) -> tuple[str, ...]:
    """``attn1.to_out.0`` -> ``("attn1", "to_out_0")``."""
    parts: list[str] = []
    for part in name.split("."):
        if part.isdigit() and parts:
            parts[-1] = f"{parts[-1]}_{part}"
        else:
            parts.append(part)
    return tuple(parts)


def module_name(path: Sequence[str]) -> str:
    """``("attn1", "to_out_0")`` -> ``attn1.to_out.0``, the inverse of `module_path`."""
    return ".".join(part if part in _LITERAL_PARTS else _split_indices(part) for part in path)


def torch_key(path: Sequence[str]) -> str:
    """``("conv_in", "kernel")`` -> ``conv_in.weight``: the name that torch gives to a leaf of the tree."""
    *module, leaf = path
    if leaf in _WEIGHT_LEAVES:
        leaf = "weight"
    return ".".join([module_name(module), leaf] if module else [leaf])


def _split_indices(part: str) -> str:
    stem, indices = re.fullmatch(r"(.+?)((?:_\d+)*)", part).groups()
    return stem + indices.replace("_", ".")


def to_tree(
    state: Mapping[str, np.ndarray],
    shapes: Mapping[str, Any],
    where: str,
    renames: Renames = (),
    ignore: Sequence[str] = (),
    dtype: Any = None,
) -> dict[str, Any]:
    """Fills a tree of shapes with the tensors of a state dict; every one has to be used, and every leaf filled.

    Args:
      state: torch names to arrays, torch's layouts.
      shapes: nested dict whose leaves have ``.shape`` (``jax.eval_shape`` of an init).
      where: the file or folder, for messages.
      renames: repairs of old names.
      ignore: patterns of keys that carry no weights, searched in the names before any renaming.
      dtype: what floating-point tensors are cast to; None leaves them as they are stored.

    Returns:
      The tree. Turned kernels are views of the given arrays: JAX turns them on their way to the device, without a
      second copy on the host. A 1x1 convolution is squeezed for a Dense leaf, and the other way round.

    Raises:
      UserError: missing, unknown, mis-shaped or duplicate keys, sorted and named as torch names them.
    """
    wanted = {tuple(path.split("/")): leaf for path, leaf in flatten(shapes).items()}
    filled: dict[tuple[str, ...], np.ndarray] = {}
    sources: dict[tuple[str, ...], str] = {}
    problems: dict[str, list[str]] = {"unknown": [], "given twice": [], "of another shape or type": []}
    for key, array in state.items():
        if any(re.search(pattern, key) for pattern in ignore):
            continue
        path = _find_leaf(_rename(key, renames), wanted)
        if path is None:
            problems["unknown"].append(key)
            continue
        value = _as_leaf(array, path, wanted[path].shape)
        if sources.setdefault(path, key) != key:
            problems["given twice"].append(f"{sources[path]} and {key}")
        elif value is None:
            expected = _torch_shape(path, wanted[path].shape)
            problems["of another shape or type"].append(f"{key} {array.dtype}{array.shape}, expected {expected}")
        filled[path] = array if value is None else _cast(value, dtype)
    missing = [torch_key(path) for path in wanted.keys() - filled.keys()]
    _raise_problems(where, {"missing": missing, **problems})
    return unflatten({"/".join(path): value for path, value in filled.items()})


def to_state(tree: Mapping[str, Any], dtype: Any = None) -> dict[str, np.ndarray]:
    """The inverse of `to_tree`: contiguous arrays under torch's names and in torch's layouts.

    Args:
      tree: nested dict of arrays, numpy or jax.
      dtype: what floating-point leaves are cast to; None leaves them as they are.

    Raises:
      ValueError: two leaves have the same torch name, or a kernel has a rank that no torch layer has.
    """
    state: dict[str, np.ndarray] = {}
    for flat_path, leaf in flatten(tree).items():
        path = tuple(flat_path.split("/"))
        key, value = torch_key(path), np.asarray(leaf)
        if key in state:
            raise ValueError(f"two leaves of the tree are named {key} in torch")
        if path[-1] == "kernel":
            if value.ndim not in _TO_TORCH:
                raise ValueError(f"{flat_path} has rank {value.ndim}: no torch layer has such a weight")
            value = value.transpose(_TO_TORCH[value.ndim])
        # order="C" and not ascontiguousarray, which would turn a scalar (logit_scale) into a vector of one.
        state[key] = np.asarray(_cast(value, dtype), order="C")
    return state


def _rename(key: str, renames: Renames) -> str:
    for pattern, replacement in renames:
        if re.search(pattern, key):
            return re.sub(pattern, replacement, key, count=1)
    return key


def _find_leaf(key: str, wanted: Mapping[tuple[str, ...], Any]) -> tuple[str, ...] | None:
    path = module_path(key)
    names = _WEIGHT_LEAVES if path[-1] == "weight" else path[-1:]
    return next((path[:-1] + (name,) for name in names if path[:-1] + (name,) in wanted), None)


def _as_leaf(array: np.ndarray, path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray | None:
    """The array in the layout of the leaf, or None when it does not fit it."""
    if path[-1] == "kernel":
        if len(shape) == 2 and array.ndim == 4 and array.shape[2:] == (1, 1):
            array = array[:, :, 0, 0]
        elif len(shape) == 4 and array.ndim == 2:
            array = array[:, :, None, None]
        if array.ndim in _TO_TREE:
            array = array.transpose(_TO_TREE[array.ndim])
    fits = array.shape == tuple(shape) and jnp.issubdtype(array.dtype, jnp.floating)
    return array if fits else None


def _torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    turned = path[-1] == "kernel" and len(shape) in _TO_TORCH
    return tuple(shape[axis] for axis in _TO_TORCH[len(shape)]) if turned else tuple(shape)


def _cast(array: np.ndarray, dtype: Any) -> np.ndarray:
    # A lone number (CLIP's logit_scale) keeps its digits: bfloat16 would move every score by a percent.
    casts = dtype is not None and array.ndim > 0 and jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(dtype, copy=False) if casts else array


def _raise_problems(where: str, problems: Mapping[str, Sequence[str]]) -> None:
    found = [f"{len(names)} {problem}: {shorten(names)}" for problem, names in problems.items() if names]
    if found:
        raise UserError(
            f"{where}: weights do not fit the model: {'; '.join(found)}; check that config.json and the weights "
            "belong to the same model"
        )

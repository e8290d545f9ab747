"""The one rule that translates between torch's flat names and layouts and a tree of given shapes.

Names: the key is split at its dots, and an integer part joins the part before it with an underscore
(``down_blocks.0.attentions.1.proj_in.weight`` -> ``down_blocks_0/attentions_1/proj_in/kernel``). A last part ``weight``
becomes ``kernel``, ``scale`` or ``embedding``, whichever the tree has there; any other last part keeps its name.

Layouts: kernels are transposed according to their rank, [out in] <-> [in out], [out in w] <-> [w in out],
OIHW <-> HWIO; nothing else is transposed.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten, unflatten
from spo_jax.weights.messages import shorten

# Pairs of (pattern, replacement) for torch keys; only the first pattern that is found in a key is applied.
Renames = Sequence[tuple[str, str]]

_WEIGHT_LEAVES = ("kernel", "scale", "embedding")
_TO_TREE = {2: (1, 0), 3: (2, 1, 0), 4: (2, 3, 1, 0)}
_TO_TORCH = {2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1)}
# Names that end in "_<n>" in torch too (TimestepEmbedding); everywhere else "_<n>" stands for ".<n>".
_LITERAL_PARTS = frozenset({"linear_1", "linear_2"})


def module_path(name: str) -> tuple[str, ...]:
    """Translates torch's name of a module: ``attn1.to_out.0`` -> ``("attn1", "to_out_0")``."""
    parts: list[str] = []
    for part in name.split("."):
        if part.isdigit() and parts:
            parts[-1] = f"{parts[-1]}_{part}"
        else:
            parts.append(part)
    return tuple(parts)


def module_name(path: Sequence[str]) -> str:
    """Translates back to torch's name of a module: ``("attn1", "to_out_0")`` -> ``attn1.to_out.0``."""
    return ".".join(part if part in _LITERAL_PARTS else _split_indices(part) for part in path)


def torch_key(path: Sequence[str]) -> str:
    """Translates a path to torch's name of that leaf: ``("conv_in", "kernel")`` -> ``conv_in.weight``."""
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
    """Fills a tree of shapes with the tensors of a state dict; every tensor has to be used and every leaf filled.

    A 1x1 convolution is squeezed to fill a Dense leaf, and the weight of a Dense fills a 1x1 convolution.

    Args:
      state: torch names to arrays in torch's layouts.
      shapes: nested dict whose leaves have ``.shape`` (``jax.eval_shape`` of an init).
      where: the file or folder, for messages.
      renames: how old names are repaired.
      ignore: patterns of keys that hold no weights; they are searched in the names before any renaming.
      dtype: the type that floating-point tensors are cast to; None keeps the stored type.

    Returns:
      The tree. Transposed kernels are views of the given arrays: JAX transposes them on their way to the device,
      without a second copy on the host.

    Raises:
      UserError: keys are missing, unknown, duplicate or of another shape; they are listed, sorted, under torch's names.
    """
    # Assign every tensor to a leaf, and collect the problems.
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
    # Report all problems at once.
    missing = [torch_key(path) for path in wanted.keys() - filled.keys()]
    _raise_problems(where, {"missing": missing, **problems})
    return unflatten({"/".join(path): value for path, value in filled.items()})


def to_state(tree: Mapping[str, Any], dtype: Any = None) -> dict[str, np.ndarray]:
    """Inverts `to_tree`: returns contiguous arrays under torch's names and in torch's layouts.

    Args:
      tree: nested dict of numpy or jax arrays.
      dtype: the type that floating-point leaves are cast to; None keeps their type.

    Raises:
      ValueError: two leaves have the same torch name, or a kernel has a rank that no torch layer has.
    """
    state: dict[str, np.ndarray] = {}
    for flat_path, leaf in flatten(tree).items():
        path = tuple(flat_path.split("/"))
        key = torch_key(path)
        value = np.asarray(leaf)
        if key in state:
            raise ValueError(f"two leaves of the tree are named {key} in torch")
        if path[-1] == "kernel":
            if value.ndim not in _TO_TORCH:
                raise ValueError(f"{flat_path} has rank {value.ndim}: expected the rank of a torch layer, 2 to 4")
            value = value.transpose(_TO_TORCH[value.ndim])
        # np.ascontiguousarray would turn a scalar (logit_scale) into a vector of one element.
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
    """Returns the array in the layout of the leaf, or None if it does not fit."""
    if path[-1] == "kernel":
        if len(shape) == 2 and array.ndim == 4 and array.shape[2:] == (1, 1):
            array = array[:, :, 0, 0]
        elif len(shape) == 4 and array.ndim == 2:
            array = array[:, :, None, None]
        if array.ndim in _TO_TREE:
            array = array.transpose(_TO_TREE[array.ndim])
    fits = array.shape == tuple(shape) and is_float(array.dtype)
    return array if fits else None


def _torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape that the weight of a leaf has in torch."""
    if path[-1] == "kernel" and len(shape) in _TO_TORCH:
        return tuple(shape[axis] for axis in _TO_TORCH[len(shape)])
    return tuple(shape)


def _cast(array: np.ndarray, dtype: Any) -> np.ndarray:
    # Scalars (CLIP's logit_scale) keep their precision: in bfloat16 every score would change by a percent.
    casts = dtype is not None and array.ndim > 0 and is_float(array.dtype)
    return array.astype(dtype, copy=False) if casts else array


def is_float(dtype: np.dtype) -> bool:
    """Whether numbers of a dtype are floating-point ones, those of ml_dtypes (bfloat16) included."""
    try:
        ml_dtypes.finfo(dtype)
    except ValueError:
        return False
    return dtype.kind != "c"


def _raise_problems(where: str, problems: Mapping[str, Sequence[str]]) -> None:
    found = [f"{len(names)} {problem}: {shorten(names)}" for problem, names in problems.items() if names]
    if found:
        raise UserError(
            f"{where}: weights do not fit the model: {'; '.join(found)}; check that config.json and the weights "
            "belong to the same model"
        )

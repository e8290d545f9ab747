"""The files of a component's folder: chooses those that hold the weights, reads them and writes them.

A state is a ``dict[str, np.ndarray]`` with torch's names and layouts; bfloat16 is ``ml_dtypes.bfloat16``.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from absl import logging
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save, save_file

from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object, write_atomic, write_json
from spo_jax.weights.messages import explain_unreadable, printable, shorten
from spo_jax.weights.torch_zip import read_torch_names, read_torch_zip

State = dict[str, np.ndarray]
Kind = Literal["diffusers", "transformers"]

# The file names of diffusers and transformers: first the safetensors file, then the torch file.
_FILES: dict[str, tuple[str, str]] = {
    "diffusers": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "transformers": ("model.safetensors", "pytorch_model.bin"),
}
_FALLBACK_VARIANT = "fp16"
TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def choose_weights(names: Iterable[str], kind: Kind, variant: str | None = None) -> tuple[str, str | None] | None:
    """Chooses the file (or the index of shards) of a folder to read.

    Args:
      names: the file names of the folder, local or on the hub.
      kind: the library whose file names to look for.
      variant: for example ``fp16``, and then no other variant is chosen; None prefers full precision and falls back to
        ``fp16`` if there is nothing else.

    Returns:
      The file name and its variant, or None if the folder has no such file.
    """
    names = set(names)
    for wanted in (variant,) if variant else (None, _FALLBACK_VARIANT):
        for name in _FILES[kind]:
            for candidate in (name, f"{name}.index.json"):
                if _with_variant(candidate, wanted) in names:
                    return _with_variant(candidate, wanted), wanted
    return None


def weights_name(kind: Kind, variant: str | None = None) -> str:
    """Names the safetensors file of a component, such as ``diffusion_pytorch_model.safetensors``."""
    return _with_variant(_FILES[kind][0], variant)


def files_of_choice(name: str, names: Iterable[str]) -> list[str]:
    """Lists the chosen file, or the chosen index and its shards, which are recognised by their names."""
    match = re.fullmatch(r"(.+)\.(safetensors|bin)\.index(\.[^.]+)?\.json", name)
    if match is None:
        return [name]
    stem = match.group(1)
    suffix = match.group(2)
    variant = match.group(3) or ""
    shard = re.compile(rf"{re.escape(stem + variant)}-\d{{5}}-of-\d{{5}}\.{suffix}")
    return [name, *sorted(other for other in names if shard.fullmatch(other))]


def _with_variant(name: str, variant: str | None) -> str:
    # diffusers and transformers both put the variant before the last suffix: an index ends in ".index.fp16.json".
    head, suffix = name.rsplit(".", 1)
    return f"{head}.{variant}.{suffix}" if variant else name


def read_state(folder: str | os.PathLike, kind: Kind, variant: str | None = None) -> State:
    """Reads all tensors of a component's folder, or of one file.

    Args:
      folder: a folder that holds ``diffusion_pytorch_model.*`` or ``model.*`` (see ``kind``), whole or in shards; or a
        file, which is read as it is.
      kind: the library whose file names to look for.
      variant: see `choose_weights`.

    Raises:
      UserError: there are no weights, a shard is missing, a key is in two shards, an index disagrees with its shards,
        or a file is damaged.
    """
    folder = Path(folder)
    if folder.is_file():
        return read_file(folder)
    name, used = find_weights(folder, kind, variant)
    if used != variant:
        logging.warning("%s has no weights in full precision; reading its %s variant: %s", folder, used, name)
    return _read_shards(folder / name) if name.endswith(".json") else read_file(folder / name)


def find_weights(folder: Path, kind: Kind, variant: str | None = None) -> tuple[str, str | None]:
    """Does what `choose_weights` does for a local folder.

    Raises:
      UserError: there are no weights.
    """
    if not folder.is_dir():
        raise UserError(f"no such folder: {folder}: expected a folder with {weights_name(kind, variant)}")
    names = sorted(entry.name for entry in folder.iterdir())
    choice = choose_weights(names, kind, variant)
    if choice is None:
        expected = weights_name(kind, variant)
        raise UserError(f"{folder} holds no weights: expected {expected}, found {shorten(names) or 'nothing'}")
    return choice


def read_file(path: str | os.PathLike) -> State:
    """Reads the tensors of one ``.safetensors``, ``.bin``, ``.pt``, ``.pth`` or ``.ckpt`` file.

    Raises:
      UserError: the file is missing, damaged or of another kind (see `read_torch_zip` for torch files).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"missing file: {path}")
    if path.suffix == ".safetensors":
        return _with_safetensors(path, load_file)
    check_suffix(path)
    return read_torch_zip(path)


def read_names(path: str | os.PathLike) -> list[str]:
    """Reads the names of the tensors of a file that `read_file` takes, without the weights.

    Raises:
      UserError: as `read_file`, as far as it shows without the weights.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return list(read_shapes(path))
    check_suffix(path)
    return read_torch_names(path)


def check_suffix(path: Path) -> None:
    """Raises a `UserError` unless a file's name ends as that of a file with weights."""
    if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise UserError(
            f"{path}: expected a .safetensors, {', '.join(TORCH_SUFFIXES[:-1])} or {TORCH_SUFFIXES[-1]} file"
        )


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Reads the text metadata in the header of a safetensors file; empty for any other file.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return {}
    if not path.is_file():
        raise UserError(f"missing file: {path}")

    def read(name: Path) -> dict[str, str]:
        with safe_open(name, framework="np") as opened:
            return opened.metadata() or {}

    return _with_safetensors(path, read)


def read_shapes(path: str | os.PathLike) -> State:
    """Reads the header of a safetensors file: arrays of the right shapes that take no memory and hold only zeros.

    Raises:
      UserError: the file is damaged.
    """

    def read(name: Path) -> State:
        with safe_open(name, framework="numpy") as file:
            return {key: np.broadcast_to(np.float32(0), file.get_slice(key).get_shape()) for key in file.keys()}

    return _with_safetensors(Path(path), read)


def _with_safetensors(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except (SafetensorError, OSError) as error:
        reason = printable(str(error), 300)
        raise UserError(f"cannot read {path} as safetensors: {explain_unreadable(path)} ({reason})") from error
    except (ValueError, OverflowError) as error:  # numpy has at most 64 axes and 2**63 elements, zero or not
        raise UserError(f"cannot read {path} as safetensors: a tensor's shape is none of numpy: {error}") from error
    except AttributeError as error:  # safetensors looks up its types in numpy, which has no 8-bit floats
        raise UserError(f"{path} has tensors of an unreadable type: {error}; convert them to float16") from error


def _read_shards(index: Path) -> State:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map: expected an index of shards")
    shards = sorted({str(name) for name in weight_map.values()})
    missing = [name for name in shards if Path(name).name != name or not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"{index} names shards that are missing: {shorten(missing)}; fetch them again")
    state: State = {}
    for shard in shards:
        part = read_file(index.parent / shard)
        twice = part.keys() & state.keys()
        if twice:
            raise UserError(f"{index.parent / shard} repeats keys of an earlier shard: {shorten(twice)}")
        state |= part
    if state.keys() != weight_map.keys():
        odd = state.keys() ^ weight_map.keys()
        raise UserError(f"{index} and its shards disagree about {len(odd)} keys: {shorten(odd)}")
    return state


def write_state(
    path: str | os.PathLike,
    state: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int | None = None,
) -> set[str]:
    """Writes safetensors files that torch, diffusers and transformers read, each of them whole or not at all.

    Args:
      path: the file, such as ``.../diffusion_pytorch_model.safetensors``; shards and their index are named after it.
      state: torch names to numpy or jax arrays in torch's layouts.
      metadata: text for the header, in addition to ``format: pt``.
      max_shard_bytes: cuts the weights into shards of at most this size (a tensor is never cut); None writes one file.

    Returns:
      The names of the files that were written, all in the folder of ``path``.

    Raises:
      UserError: the files cannot be written.
    """
    # Cut the arrays into shards and name the files.
    path = Path(path)
    header = {**(metadata or {}), "format": "pt"}
    arrays = {name: _contiguous(value) for name, value in state.items()}
    shards = _cut(arrays, max_shard_bytes)
    if len(shards) == 1:
        names = [path.name]
    else:
        names = [f"{path.stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    # Write the files.
    for name, shard in zip(names, shards, strict=True):
        write_atomic(path.parent / name, lambda temporary, shard=shard: _save(shard, temporary, header))
    if len(shards) == 1:
        return set(names)
    # Write the index of the shards.
    index = _index_name(path.name)
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in sorted(shard)}
    total = sum(array.nbytes for array in arrays.values())
    write_json(path.parent / index, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return {*names, index}


def serialized(state: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Returns the bytes of a safetensors file with these tensors and this metadata, and nothing else in its header."""
    return save({name: _contiguous(value) for name, value in state.items()}, dict(metadata))


def _save(state: State, path: Path, header: Mapping[str, str]) -> None:
    try:
        save_file(state, path, metadata=dict(header))
    except SafetensorError as error:  # a full disk raises it too
        raise OSError(str(error)) from error
    _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Sorts the metadata in the header of a safetensors file in place, so that equal content is equal bytes.

    safetensors (0.8.0) writes its entries in the order of a hash table, which is another one in every process.
    """
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:  # as long as before, but for the spaces that align the tensors
            file.seek(8)
            file.write(text.ljust(size))


def _contiguous(value: Any) -> np.ndarray:
    # safetensors.numpy (0.8.0) silently writes the memory behind a transposed view in its original order, and so saves
    # wrong values. np.ascontiguousarray would prevent that, but it turns a scalar into a vector of one element.
    array = np.asarray(value, order="C")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _cut(arrays: State, max_bytes: int | None) -> list[State]:
    """Distributes the arrays, in order, over shards of at most ``max_bytes`` (None: one shard)."""
    shards: list[State] = [{}]
    size = 0
    for name, array in arrays.items():
        if max_bytes is not None and shards[-1] and size + array.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += array.nbytes
    return shards


def _index_name(name: str) -> str:
    stem, _, variant = name.removesuffix(".safetensors").partition(".")
    return _with_variant(f"{stem}.safetensors.index.json", variant or None)


def remove_older(path: Path, keep: set[str]) -> None:
    """Removes the files that an earlier `write_state` to the same path, with another number of shards, left behind.

    diffusers prefers an index to a single file, so an old index would hide the new file.

    Args:
      path: the path that was given to `write_state`.
      keep: the names that `write_state` returned.
    """
    shard = re.compile(rf"{re.escape(path.stem)}-\d{{5}}-of-\d{{5}}\.safetensors")
    for entry in path.parent.iterdir():
        ours = entry.name in (path.name, _index_name(path.name)) or shard.fullmatch(entry.name)
        if ours and entry.name not in keep:
            entry.unlink()

"""Reads torch's zip files (``.bin``, ``.pt``, ``.ckpt``) without torch and without running any code in them.

Mirrors ``torch.load(weights_only=True)`` for state dicts, and also takes them out of the checkpoints of trainers, which
hold other objects beside them. What the file claims is checked before any of its
weights are read: that no two records share bytes, that the tensors fit their storages, and how much memory they take.
"""

import dataclasses
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.weights.messages import explain_unreadable, printable, shorten
from spo_jax.weights.torch_pickle import MAX_BYTES, interpret, too_large
from spo_jax.weights.torch_values import BadPickle, Dict, Other, Storage, Tensor, full_name, kind_of

_COPIES = 4  # The tensors may take this many times the size of the file, because several names can share a storage.
_HEADER = 30  # bytes in front of each record, without its name
_PIECE = 2**24  # bytes that are read at a time


def read_torch_zip(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict that was saved by torch 1.6 or newer.

    Args:
      path: a file that holds ``{name: tensor}``, or such a dict under the key ``state_dict``.

    Returns:
      Contiguous arrays of float32, float16, bfloat16, int64 or int32.

    Raises:
      UserError: the file is not such a zip file, is damaged, has anything except tensors of these types in its state
        dict (another Python object is never imported, let alone called), or would take far more memory than its size.
    """
    return _opened(path, _read_within_limit)


def read_torch_modules(path: Path) -> dict[str, np.ndarray]:
    """Reads what a trainer saved of several modules in one file: ``{module: state dict, name: tensor or number}``.

    Returns:
      Arrays as `read_torch_zip` returns them, whose names are ``module.name`` within a module; numbers are float32.

    Raises:
      UserError: as `read_torch_zip`.
    """

    def read(records: "_Records", items: dict[str, Tensor | float]) -> dict[str, np.ndarray]:
        tensors = {name: item for name, item in items.items() if isinstance(item, Tensor)}
        numbers = {name: np.asarray(item, np.float32) for name, item in items.items() if isinstance(item, float)}
        return _read_within_limit(records, tensors) | numbers

    return _opened(path, read, _modules)


def read_torch_names(path: Path) -> list[str]:
    """Reads the names of the tensors of a state dict, and none of its weights.

    Raises:
      UserError: as `read_torch_zip`, as far as it shows without the weights.
    """
    return _opened(path, lambda records, tensors: list(tensors))


def _opened(path: Path, use: Callable[["_Records", Any], Any], check: Callable[[Any, Path], Any] | None = None) -> Any:
    """Opens a file for a function of its records and of what it says of its tensors, and explains what goes wrong.

    Args:
      path: the file.
      use: the function.
      check: what checks the object of the file, and returns what ``use`` takes; None expects a state dict.
    """
    check = check or _state_dict
    try:
        with zipfile.ZipFile(path) as archive:
            records = _Records(archive, path)
            return use(records, check(interpret(records.read_pickle()), path))
    except UserError:
        raise
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is not a torch zip file: {explain_unreadable(path)}") from error
    except Exception as error:  # For a damaged list of records, zipfile can raise anything; its docs give no list.
        raise UserError(f"cannot read {path} as a torch state dict: {' '.join(str(error).split())[:300]}") from error


def _read_within_limit(records: "_Records", tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    # Tied weights are two names of one storage. A thousand names would let a small file exhaust the memory.
    size = sum(tensor.count * tensor.storage.dtype.itemsize for tensor in tensors.values())
    file_size = records.path.stat().st_size
    if size > _COPIES * file_size:
        raise UserError(
            f"{records.path} has too many names for the same storage: its tensors take {size} bytes, but the file has "
            f"only {file_size}"
        )
    return _read(records, tensors)


def _state_dict(value: Any, path: Path) -> dict[str, Tensor]:
    """Checks that the object of a file is a state dict, and returns its tensors."""
    if isinstance(value, Dict) and isinstance(value.items.get("state_dict"), Dict):
        value = value.items["state_dict"]
    if not isinstance(value, Dict):
        _refuse_name(value, "a state dict")
        raise UserError(f"{path} holds {kind_of(value)}: expected a state dict")
    for key, item in value.items.items():
        _refuse_name(item, f"the tensor {printable(str(key))}")
    if value.dropped:
        raise BadPickle(f"it has a key that is {value.dropped}: expected texts")
    others = [str(key) for key, item in value.items.items() if not isinstance(key, str) or not isinstance(item, Tensor)]
    if others:
        raise UserError(f"{path} is not a plain state dict: these entries are not tensors: {shorten(others)}")
    return value.items


def _modules(value: Any, path: Path) -> dict[str, Tensor | float]:
    """Checks that the object of a file is a dict of state dicts, tensors and numbers, and returns it without levels."""
    items = value.items if isinstance(value, Dict) else {}
    levels = {key: _state_dict(item, path) for key, item in items.items() if isinstance(item, Dict)}
    numbers = {key: item for key, item in items.items() if isinstance(item, float)}
    rest = {key: item for key, item in items.items() if key not in levels | numbers}
    tensors = _state_dict(dataclasses.replace(value, items=rest) if isinstance(value, Dict) else value, path)
    inner = {f"{module}.{name}": tensor for module, state in levels.items() for name, tensor in state.items()}
    return {**tensors, **numbers, **inner}


def _refuse_name(value: Any, expected: str) -> None:
    """Refuses an object of which only the name is known."""
    if isinstance(value, Other) and value.module is not None:
        raise BadPickle(
            f"it names {full_name(value)} in the place of {expected}, which plain weights do not need; no code was run"
        )


def _read(records: "_Records", tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Reads the storages one after the other, so that no more than one is in memory beside the arrays."""
    names = defaultdict(list)
    for name, tensor in tensors.items():
        names[tensor.storage].append(name)
    arrays = {}
    for storage, tied in names.items():
        content = records.read(storage)
        for name in tied:
            arrays[name] = _view(content, tensors[name])
            if len(tied) > 1 or not arrays[name].flags.c_contiguous or arrays[name].size < content.size:
                arrays[name] = np.array(arrays[name], order="C")
    return {name: arrays[name] for name in tensors}


def _view(content: np.ndarray, tensor: Tensor) -> np.ndarray:
    strides = tuple(step * content.itemsize for step in tensor.stride)
    return np.lib.stride_tricks.as_strided(content[tensor.offset :], tensor.size, strides)


class _Records:
    """The records of an archive, of which no two share bytes."""

    def __init__(self, archive: zipfile.ZipFile, path: Path):
        self.path = path
        self._archive = archive
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        for info in infos:
            # Torch compresses nothing. A compressed record would let a small file exhaust the memory.
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise BadPickle(f"record {printable(info.filename)} is compressed")
        starts = [info.header_offset for info in infos[1:]] + [archive.start_dir]
        for info, end in zip(infos, starts, strict=True):
            if info.header_offset + _HEADER + info.file_size > end:
                raise BadPickle(f"record {printable(info.filename)} overlaps the next one")
        self._infos = {info.filename: info for info in infos}

        pickles = [name for name in self._infos if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"{path} is a zip file but not from torch: expected one data.pkl, found {len(pickles)}")
        self._root = pickles[0].removesuffix("data.pkl")
        order = self._infos.get(f"{self._root}byteorder")
        if order is not None and (order.file_size > len("little") or archive.read(order) != b"little"):
            raise UserError(f"{path} was written on a big-endian machine, which is not supported")

    def read_pickle(self) -> bytes:
        info = self._infos[f"{self._root}data.pkl"]
        if info.file_size > MAX_BYTES:
            raise too_large(info.file_size)
        return self._archive.read(info)

    def read(self, storage: Storage) -> np.ndarray:
        """Reads a storage into an array that may be changed."""
        name = f"{self._root}data/{storage.key}"
        if name not in self._infos:
            raise BadPickle(f"There is no item named {name[:200]!r} in the archive")
        size = self._infos[name].file_size
        if size != storage.count * storage.dtype.itemsize:
            expected = f"{storage.count} elements of {storage.dtype}"
            raise BadPickle(f"storage {printable(storage.key)} holds {size} bytes: expected {expected}")
        content = np.empty(storage.count, storage.dtype)
        left = memoryview(content.view(np.uint8))
        with self._archive.open(self._infos[name]) as record:
            while count := record.readinto(left[:_PIECE]):
                left = left[count:]
        return content

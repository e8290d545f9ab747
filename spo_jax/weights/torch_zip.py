"""Reads torch's zip files (``.bin``, ``.pt``, ``.ckpt``) without torch and without running any code in them.

Mirrors ``torch.load(weights_only=True)`` for plain state dicts: the pickle may name a dict class, the functions that
rebuild a tensor, and five storage types. Any other name is refused before anything is called.
"""

import collections
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.weights.messages import explain_unreadable, shorten

# Storage types remain plain strings: a pickle can change the state of most objects (BUILD), but not of a str.
_STORAGE_DTYPES = {
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),  # counters, such as the one of a checkpoint's moving average
}

_COPIES = 4  # The tensors may take this many times the size of the file, because several names can share a storage.


def read_torch_zip(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict that was saved by torch 1.6 or newer.

    Args:
      path: a file that holds ``{name: tensor}``, or such a dict under the key ``state_dict``.

    Returns:
      Contiguous arrays of float32, float16, bfloat16, int64 or int32.

    Raises:
      UserError: the file is not such a zip file, is damaged, holds anything except tensors of these types, or names any
        other Python object (which is never imported, let alone called).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _arrays(_load(archive, path), path)
    except UserError:
        raise
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is not a torch zip file: {explain_unreadable(path)}") from error
    except Exception as error:  # A damaged or hostile pickle can raise anything; Python's docs give no complete list.
        raise UserError(f"cannot read {path} as a torch state dict: {error}") from error


def _arrays(loaded: Any, path: Path) -> dict[str, np.ndarray]:
    """Checks that a loaded object is a state dict, and returns its arrays.

    This calls the methods of `dict` itself, because a pickle can replace those of an OrderedDict.
    """
    if isinstance(loaded, dict) and isinstance(dict.get(loaded, "state_dict"), dict):
        loaded = dict.get(loaded, "state_dict")
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds a {type(loaded).__name__}: expected a state dict")
    entries = dict(dict.items(loaded))
    others = [repr(key) for key in entries if not isinstance(key, str)]
    others += [key for key, value in entries.items() if isinstance(key, str) and not isinstance(value, np.ndarray)]
    if others:
        raise UserError(f"{path} is not a plain state dict: these entries are not tensors: {shorten(others)}")
    # Tied weights are two names of one storage. A thousand names would let a small file exhaust the memory.
    size = sum(array.nbytes for array in entries.values())
    file_size = path.stat().st_size
    if size > _COPIES * file_size:
        raise UserError(
            f"{path} has too many names for the same storage: its tensors take {size} bytes, but the file has only "
            f"{file_size}"
        )
    return {key: np.array(value, order="C") for key, value in entries.items()}


def _load(archive: zipfile.ZipFile, path: Path) -> Any:
    """Unpickles the one pickle of the archive."""
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError(f"{path} is a zip file but not from torch: expected one data.pkl, found {len(pickles)}")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise UserError(f"{path} was written on a big-endian machine, which is not supported")
    _check_stored(archive.getinfo(pickles[0]))
    with archive.open(pickles[0]) as stream:
        return _WeightsUnpickler(stream, archive, root).load()


def _check_stored(info: zipfile.ZipInfo) -> None:
    """Refuses compressed records: torch writes none, and one would let a small file exhaust the memory."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise pickle.UnpicklingError(f"record {info.filename} is compressed")


class _RebuildTensor:
    """``torch._utils._rebuild_tensor_v2`` over numpy: a strided view of a storage."""

    __slots__ = ()

    def __call__(self, storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
        if len(size) != len(stride) or min((offset, *size, *stride)) < 0 or math.prod(size) > max(storage.size, 1):
            raise pickle.UnpicklingError(
                f"a tensor of size {size} and strides {stride} does not fit a storage of {storage.size} elements"
            )
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= storage.size:
            raise pickle.UnpicklingError(f"a tensor reaches element {last} of a storage of {storage.size}")
        bytes_stride = tuple(step * storage.itemsize for step in stride)
        return np.lib.stride_tricks.as_strided(storage[offset:], size, bytes_stride, writeable=False)


class _RebuildParameter:
    """``torch._utils._rebuild_parameter``: the tensor itself."""

    __slots__ = ()

    def __call__(self, tensor: np.ndarray, *_: Any) -> np.ndarray:
        return tensor


class _WeightsUnpickler(pickle.Unpickler):
    """Resolves the few names that a state dict needs and refuses all others."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, root: str):
        super().__init__(stream)
        self._archive = archive
        self._root = root
        self._storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full == "collections.OrderedDict":
            return collections.OrderedDict
        if full == "torch._utils._rebuild_tensor_v2":
            return _RebuildTensor()
        if full == "torch._utils._rebuild_parameter":
            return _RebuildParameter()
        if full in _STORAGE_DTYPES:
            return full
        raise pickle.UnpicklingError(f"it names {full}, which plain weights do not need; no code was run")

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage_type, key, _, count = pid
        if kind != "storage" or storage_type not in _STORAGE_DTYPES:
            raise pickle.UnpicklingError(f"unknown storage {storage_type!r}")
        if key not in self._storages:
            self._storages[key] = self._read(key, _STORAGE_DTYPES[storage_type])
        storage = self._storages[key]
        if storage.size != count or storage.dtype != _STORAGE_DTYPES[storage_type]:
            raise pickle.UnpicklingError(
                f"storage {key} holds {storage.size} elements of {storage.dtype}: expected {count} of {storage_type}"
            )
        return storage

    def _read(self, key: str, dtype: np.dtype) -> np.ndarray:
        info = self._archive.getinfo(f"{self._root}data/{key}")
        _check_stored(info)
        return np.frombuffer(self._archive.read(info), dtype)

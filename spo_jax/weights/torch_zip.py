"""Reads torch's zip files (``.bin``, ``.pt``, ``.ckpt``) without torch and without running what is in them.

Mirrors ``torch.load(weights_only=True)`` for plain state dicts: the pickle may name a dict class, the rebuild of a
tensor and five storage types; every other name is refused before anything is called.
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

# Storage names stay plain strings: a pickle can alter the state of most objects (BUILD), but not of a str.
_STORAGE_DTYPES = {
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),  # counters, such as that of a checkpoint's moving average
}

_COPIES = 4  # of a file's bytes, in names that share storages


def read_torch_zip(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict saved by torch 1.6 or newer.

    Args:
      path: a file that holds ``{name: tensor}``, or such a dict under the key ``state_dict``.

    Returns:
      Contiguous arrays of float32, float16, bfloat16, int64 or int32.

    Raises:
      UserError: the file is not such a zip, is damaged, holds anything but tensors of these types, or names any
        other Python object (which is never imported, let alone called).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _arrays(_load(archive, path), path)
    except UserError:
        raise
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is not a torch zip file: {explain_unreadable(path)}") from error
    except Exception as error:  # a damaged or hostile pickle raises anything (Python's docs promise no list)
        raise UserError(f"cannot read {path} as a torch state dict: {error}") from error


def _arrays(loaded: Any, path: Path) -> dict[str, np.ndarray]:
    """Name to array. `dict`'s own methods: a pickle can put others over those of an OrderedDict."""
    if isinstance(loaded, dict) and isinstance(dict.get(loaded, "state_dict"), dict):
        loaded = dict.get(loaded, "state_dict")
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds a {type(loaded).__name__}, expected a state dict")
    entries = dict(dict.items(loaded))
    strangers = [repr(key) for key in entries if not isinstance(key, str)]
    strangers += [key for key, value in entries.items() if isinstance(key, str) and not isinstance(value, np.ndarray)]
    if strangers:
        raise UserError(f"{path} is not a plain state dict: not tensors: {shorten(strangers)}")
    # Tied weights are two names of one storage. A thousand would let a small file ask for all the memory there is.
    size, limit = sum(array.nbytes for array in entries.values()), _COPIES * path.stat().st_size
    if size > limit:
        raise UserError(f"{path} names its tensors too often: {size} bytes from a file of {path.stat().st_size}")
    return {key: np.array(value, order="C") for key, value in entries.items()}


def _load(archive: zipfile.ZipFile, path: Path) -> Any:
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError(f"{path} is a zip file but not one of torch's: expected one data.pkl, found {len(pickles)}")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise UserError(f"{path} was written on a big-endian machine, which is not supported")
    _check_stored(archive.getinfo(pickles[0]))
    with archive.open(pickles[0]) as stream:
        return _WeightsUnpickler(stream, archive, root).load()


def _check_stored(info: zipfile.ZipInfo) -> None:
    """torch never compresses; a compressed record would let a small file ask for all the memory there is."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise pickle.UnpicklingError(f"record {info.filename} is compressed")


class _RebuildTensor:
    """``torch._utils._rebuild_tensor_v2`` over numpy: a strided view of a storage."""

    __slots__ = ()

    def __call__(self, storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
        if len(size) != len(stride) or min((offset, *size, *stride)) < 0 or math.prod(size) > max(storage.size, 1):
            raise pickle.UnpicklingError(f"a tensor of size {size}, strides {stride} in {storage.size} numbers")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= storage.size:
            raise pickle.UnpicklingError(f"a tensor reaches number {last} of a storage of {storage.size}")
        bytes_stride = tuple(step * storage.itemsize for step in stride)
        return np.lib.stride_tricks.as_strided(storage[offset:], size, bytes_stride, writeable=False)


class _RebuildParameter:
    """``torch._utils._rebuild_parameter``: the tensor itself."""

    __slots__ = ()

    def __call__(self, tensor: np.ndarray, *_: Any) -> np.ndarray:
        return tensor


class _WeightsUnpickler(pickle.Unpickler):
    """Knows the few names that a state dict needs, and no other."""

    def __init__(self, stream: Any, archive: zipfile.ZipFile, root: str):
        super().__init__(stream)
        self._archive, self._root = archive, root
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
        raise pickle.UnpicklingError(f"it names {full}, which no file of plain weights needs; nothing was run")

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, storage_type, key, _, count = pid
        if kind != "storage" or storage_type not in _STORAGE_DTYPES:
            raise pickle.UnpicklingError(f"unknown storage {storage_type!r}")
        if key not in self._storages:
            self._storages[key] = self._read(key, _STORAGE_DTYPES[storage_type])
        storage = self._storages[key]
        if storage.size != count or storage.dtype != _STORAGE_DTYPES[storage_type]:
            raise pickle.UnpicklingError(f"storage {key} holds {storage.size} numbers, expected {count}")
        return storage

    def _read(self, key: str, dtype: np.dtype) -> np.ndarray:
        info = self._archive.getinfo(f"{self._root}data/{key}")
        _check_stored(info)
        return np.frombuffer(self._archive.read(info), dtype)

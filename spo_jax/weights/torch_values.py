"""What `spo_jax.weights.torch_pickle` makes of a torch file: the values that a state dict needs, and their checks."""

import dataclasses
import math
from typing import Any

import ml_dtypes
import numpy as np

from spo_jax.weights.messages import printable

_STORAGE_DTYPES = {
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),  # counters, such as the one of a checkpoint's moving average
}
ORDERED_DICT = "collections.OrderedDict"
REBUILT_TENSOR = "torch._utils._rebuild_tensor_v2"
REBUILT_PARAMETER = "torch._utils._rebuild_parameter"


class BadPickle(ValueError):
    """The pickle is damaged, or holds what no state dict needs."""


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    """A record of numbers.

    Attributes:
      key: its name in the file.
      dtype: dtype of its elements.
      count: number of its elements, as the pickle has it.
    """

    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """A strided view of a storage, which it fits; offset and strides are counted in elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.size)


@dataclasses.dataclass(slots=True)
class Dict:
    """A dict of the pickle.

    Attributes:
      items: texts or integers to tensors, dicts, texts, numbers, None or `Other`.
      dropped: kind of a key that is no text or integer, whose item was left out; empty if there was none.
      depth: number of dicts within dicts, this one included.
      is_placed: whether it is an item of another dict; it can no longer change then, so its depth is final.
    """

    items: dict[str | int, Any] = dataclasses.field(default_factory=dict)
    dropped: str = ""
    depth: int = 1
    is_placed: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Name:
    """One of the few global names that a state dict needs, which is never resolved."""

    full: str


@dataclasses.dataclass(frozen=True, slots=True)
class Other:
    """A value of which only the kind was kept, because nothing in a state dict depends on the rest.

    Attributes:
      kind: what it is, in words; or a global name, or the name of the class or function that made it.
      module: module of the name; None if ``kind`` is in words.
    """

    kind: str
    module: str | None = None


LIST = Other("a list")
SET = Other("a set")
BYTES = Other("bytes")
TUPLE = Other("a tuple")
LONG = Other("an integer of more than 64 bits")
# The names that a state dict needs. The parts are not joined to compare them: a memo can hold long texts, and every
# pair of them would be a new one.
NAMES = {
    tuple(full.rsplit(".", 1)): Name(full)
    for full in (ORDERED_DICT, REBUILT_TENSOR, REBUILT_PARAMETER, *_STORAGE_DTYPES)
}


def kind_of(value: Any) -> str:
    """Names the kind of a value for messages, such as ``a tuple``."""
    if isinstance(value, Other):
        return value.kind if value.module is None else f"a {full_name(value)}"
    return _KINDS.get(type(value), "something else")


def full_name(value: Other) -> str:
    """Returns the name of a global, or of what made a value, for messages."""
    return f"{printable(value.module or '')}.{printable(value.kind)}"


_KINDS = {
    type(None): "None",
    bool: "a truth value",
    int: "an integer",
    float: "a number with a fraction",
    str: "a text",
    tuple: "a tuple",
    Dict: "a dict",
    Name: "a global name",
    Storage: "a storage",
    Tensor: "a tensor",
}
_DICT_KIND = Other("a dict")


def without_containers(value: Any) -> Any:
    """Returns an element as a tuple keeps it: of a dict, and of a tuple that holds tuples, only the kind."""
    if isinstance(value, Dict):
        return _DICT_KIND
    return TUPLE if isinstance(value, tuple) and any(isinstance(item, tuple) for item in value) else value


def holds_tensor(arguments: tuple) -> bool:
    """Whether arguments begin with a tensor, or with what is known by its kind alone."""
    return bool(arguments) and isinstance(arguments[0], Tensor | Other)


def storage_of(pid: Any) -> Storage | Other:
    """Returns a storage; for one of a type that no weights have, such as that of a random generator, its name.

    Args:
      pid: the persistent id with which torch's pickles refer to a record.

    Raises:
      BadPickle: it is not such an id.
    """
    kinds = (str, Name | Other, str, str, int)
    if not isinstance(pid, tuple) or len(pid) != 5 or not all(map(isinstance, pid, kinds)) or pid[0] != "storage":
        raise BadPickle("its pickle is damaged: found something else, expected the name of a storage")
    _, name, key, _, count = pid
    if isinstance(name, Other):
        return name
    if name.full not in _STORAGE_DTYPES:
        raise BadPickle(f"unknown storage {name.full}")
    return Storage(key, _STORAGE_DTYPES[name.full], count)


def tensor_of(arguments: tuple) -> Tensor | Other:
    """Does what ``torch._utils._rebuild_tensor_v2`` does, whose further arguments serve gradients only.

    Raises:
      BadPickle: the arguments are of other types, or the tensor does not fit its storage.
    """
    storage, offset, size, stride = arguments[:4] if len(arguments) >= 4 else (None,) * 4
    if isinstance(storage, Other):
        return storage
    are_numbers = (
        isinstance(storage, Storage)
        and isinstance(size, tuple)
        and isinstance(stride, tuple)
        and all(type(value) is int for value in (offset, *size, *stride))
    )
    if not are_numbers:
        raise BadPickle("a tensor is damaged: its storage, offset, size and strides are of other types")
    # A view that repeats elements (of stride 0) may be larger than its storage. Files of weights have none.
    count = math.prod(size)
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0 or count > max(storage.count, 1):
        raise BadPickle(
            f"a tensor of size {size} and strides {stride} does not fit a storage of {storage.count} elements"
        )
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count and last >= storage.count:
        raise BadPickle(f"a tensor reaches element {last} of a storage of {storage.count}")
    return Tensor(storage, offset, size, stride)

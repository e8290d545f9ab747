"""Values of fields: JSON's held to the types of dataclasses, and what several configs have alike."""

import types
from typing import Any, get_args, get_origin

from spo_jax.core.errors import UserError


def frozen(value: Any) -> Any:
    """Lists as tuples, inside out."""
    return tuple(frozen(item) for item in value) if isinstance(value, list | tuple) else value


def typed(value: Any, kind: Any, where: str) -> Any:
    """``value`` as a field of type ``kind`` holds it: lists as tuples, JSON's 1 as a float where one is expected.

    Args:
      kind: a class, a tuple type or a union of these.
      where: file and field, for the message.

    Raises:
      UserError: the value is of another type.
    """
    if not _fits(frozen(value), kind):
        name = kind.__name__ if kind in (int, float, bool, str) else str(kind)
        raise UserError(f"{where} = {value!r} is not implemented (expected {name})")
    return float(value) if kind is float else frozen(value)


def _fits(value: Any, kind: Any) -> bool:
    """JSON's 1 is also a float, its true is no int."""
    if isinstance(kind, types.UnionType):
        return any(_fits(value, choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        items = get_args(kind)
        items = items[:1] * len(value) if isinstance(value, tuple) and items[-1] is Ellipsis else items
        return isinstance(value, tuple) and 0 < len(value) == len(items) and all(map(_fits, value, items))
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return isinstance(value, kind)


def check_seed(field: str, value: int) -> None:
    """Raises a `UserError` unless the config field holds one: jax keeps the lower 32 bits, larger ones would be other
    seeds' twins."""
    if not 0 <= value < 2**32:
        raise UserError(f"config field {field} = {value}: expected 0 to 4294967295")

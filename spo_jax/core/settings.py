"""Configs at the edge, frozen dataclasses inside.

A config file builds a locked ``ml_collections.ConfigDict``; a command turns it into dataclasses before it calls
anything, so that a typo fails at start, and jitted functions get hashable static arguments.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from spo_jax.core.errors import UserError


def to_config(settings: Any) -> ConfigDict:
    """The dataclass as a ConfigDict, unlocked so that a config file can change it."""
    return ConfigDict(dataclasses.asdict(settings))


def from_config(cls: type, config: Any, where: str = "config") -> Any:
    """Reads nested dataclasses from a ConfigDict or a dict.

    Raises:
      UserError: something else than these, an unknown field (with the nearest known one), a missing one without
        default, or one of another type.
    """
    config = config.to_dict() if isinstance(config, ConfigDict) else config
    if not isinstance(config, Mapping):
        raise UserError(f"config field {where} = {config!r}: expected a group of fields")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in config:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            raise UserError(f"unknown config field {where}.{key}" + (f": did you mean {near[0]!r}?" if near else ""))
    for name, field in fields.items():
        if name not in config and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"config field {where}.{name} is missing")
    return cls(**{key: _value(hints[key], value, f"{where}.{key}") for key, value in config.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_config(hint, value, where)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"config field {where} = {value!r}: expected a tuple")
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, types.UnionType) or not isinstance(hint, type):
        return value
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"config field {where} = {value!r}: expected {hint.__name__}")
    return value

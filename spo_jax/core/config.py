"""Strictly reads dicts into frozen dataclasses: settings of runs, configs of networks, and noise schedules.

A field that is unknown, of another type or out of range is an error whose message names the field. A setting that is
silently ignored costs hours, and silently different images are worse than an error.

Settings declare each field with `setting`, which holds its default, its meaning and its range in one place. The ranges
are checked whenever a settings object is made, and `describe` lists all fields (``--help-config``).
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from ml_collections import ConfigDict

from spo_jax.core.errors import UserError
from spo_jax.core.renamed import FIELDS

_SHOWN = 200  # characters of a value in a message
MAX_LEVELS = 8  # of a network
# Upper limits of settings. What is beyond them is a slip, and is refused before anything is read or allocated.
MAX_BATCH = 2**14  # items of a batch
MAX_STEPS = 1000  # sampling steps: published models have as many timesteps
MAX_COUNT = 10**9  # counts that allocate nothing, such as batches of a run
MAX_GUIDANCE = 1000
SEED_LIMIT = 2**32  # jax uses only the lower 32 bits, so a larger seed would equal a smaller one


# Reading


def read_fields(
    cls: type,
    raw: Any,
    locate: Callable[[str], str],
    *,
    fixed: Mapping[str, tuple] = types.MappingProxyType({}),
    is_ignored: Callable[[str], bool] = lambda key: False,
) -> dict[str, Any]:
    """Reads the fields of a dataclass from a mapping, and checks that each has its declared type.

    Args:
      cls: the dataclass; its fields may be dataclasses, too.
      raw: the mapping; fields may be missing.
      locate: function from a key to its name in messages, for example ``config field spo.beta`` or
        ``unet/config.json: sample_size``.
      fixed: keys that are not fields, with the values that are implemented.
      is_ignored: function that says whether a key that is neither may be skipped.

    Returns:
      The values of those fields that ``raw`` holds.

    Raises:
      UserError: a key is unknown (the message names the nearest known one), or a value has another type.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    values = {}
    for key, value in raw.items():
        if key in names and dataclasses.is_dataclass(hints[key]):
            values[key] = _read_group(hints[key], value, lambda name, key=key: locate(f"{key}.{name}"), locate(key))
        elif key in names:
            values[key] = typed(value, hints[key], locate(key))
        elif key in fixed:
            _check_choice(freeze(value), fixed[key], locate(key))
        elif not is_ignored(key):
            raise UserError(_unknown(key, locate(key), cls, names))
    return values


def _unknown(key: str, where: str, cls: type, names: list[str]) -> str:
    new = FIELDS.get(where.removeprefix("config field "))
    if new is not None:
        return f"{where} is now {new}"
    near = difflib.get_close_matches(key, names, 1, 0.7)
    return f"{where} is not a field of {cls.__name__}" + (f": did you mean {near[0]}?" if near else "")


def _read_group(cls: type, raw: Any, locate: Callable[[str], str], where: str) -> Any:
    if not isinstance(raw, Mapping):
        raise UserError(f"{where} = {shown(raw)}: expected a group of fields")
    values = read_fields(cls, raw, locate)
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            raise UserError(f"{locate(field.name)} is missing")
    return cls(**values)


def freeze(value: Any) -> Any:
    """Converts lists to tuples, nested ones too."""
    return tuple(freeze(item) for item in value) if isinstance(value, list | tuple) else value


def typed(value: Any, kind: Any, where: str) -> Any:
    """Converts a value from JSON to the type of a field: lists to tuples, and 1 to 1.0 if a float is expected.

    Args:
      value: the value.
      kind: a class, a tuple type or a union of these.
      where: name of the field in the message.

    Raises:
      UserError: the value has another type.
    """
    value = freeze(value)
    if not _fits(value, kind):
        name = kind.__name__ if kind in (int, float, bool, str) else str(kind)
        raise UserError(f"{where} = {shown(value)}: expected {name}")
    try:
        return float(value) if kind is float else value
    except OverflowError as error:
        raise UserError(f"{where} = {shown(value)}: expected a finite number") from error


def _fits(value: Any, kind: Any) -> bool:
    """Says whether a value fits a type. JSON's 1 is also a float, but true is not an int."""
    if isinstance(kind, types.UnionType):
        return any(_fits(value, choice) for choice in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        items = typing.get_args(kind)
        items = items[:1] * len(value) if isinstance(value, tuple) and items[-1] is Ellipsis else items
        return isinstance(value, tuple) and 0 < len(value) == len(items) and all(map(_fits, value, items))
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return isinstance(value, kind)


def shown(value: Any) -> str:
    """Returns a value as Python writes it, cut off where it is too long for a line."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more than 4300 digits
        text = "a very large number"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _check_choice(value: Any, choices: tuple, where: str) -> None:
    if value not in choices:
        raise UserError(f"{where} = {shown(value)} is not implemented (known: {', '.join(map(repr, choices))})")


# Configs of networks and schedules, as diffusers and transformers write them


@dataclasses.dataclass(frozen=True)
class JSONConfig:
    """Base of the contents of a ``config.json`` of diffusers or transformers.

    Attributes:
      FIXED: keys that are not fields, with the values that are implemented.
      IGNORED: keys that have no effect here; keys that start with an underscore are always ignored, because they are
        notes of the library.
    """

    FIXED: ClassVar[Mapping[str, tuple]] = {}
    IGNORED: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "config") -> "JSONConfig":
        """Reads a config in the form of the library that wrote it.

        Args:
          raw: content of the file.
          where: the file's name in messages.

        Raises:
          UserError: a field is unknown, or a value is not implemented.
        """

        def is_ignored(key: str) -> bool:
            return key.startswith("_") or key in cls.IGNORED

        values = read_fields(cls, raw, lambda key: f"{where}: {key}", fixed=cls.FIXED, is_ignored=is_ignored)
        config = cls(**values)
        check_ranges(config, where)
        config._check(where, raw)
        return config

    def _check(self, where: str, raw: Mapping[str, Any]) -> None:
        """Raises a `UserError` for values that have the right type but are not implemented."""

    def _one_of(self, where: str, field: str, choices: tuple) -> None:
        _check_choice(getattr(self, field), choices, f"{where}: {field}")


def check_ranges(config: Any, where: str) -> None:
    """Checks the fields that are declared with `limited`; each item of a tuple has to be in the range.

    Args:
      config: a dataclass.
      where: the file's name in the message.

    Raises:
      UserError: a value is out of its range.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            if not _is_allowed(item, field.metadata):
                raise UserError(f"{where}: {field.name} = {shown(value)}: expected {expected_of(field)}")


def limited(
    default: Any,
    *,
    at_least: int | float | None = None,
    above: int | float | None = None,
    at_most: int | float | None = None,
    below: int | float | None = None,
) -> Any:
    """Declares a field of a `JSONConfig` with its range, which holds for every item of a tuple; floats are finite.

    Args:
      default: default value.
      at_least: lower bound that is allowed itself.
      above: lower bound that is not allowed itself.
      at_most: upper bound that is allowed itself.
      below: upper bound that is not allowed itself.
    """
    return dataclasses.field(default=default, metadata={"bounds": _bounds(at_least, above, at_most, below)})


def check_levels(where: str, field: str, widths: tuple[int, ...]) -> None:
    """Raises a `UserError` for a network of more levels than any: every level halves the image.

    Args:
      where: the file's name in the message.
      field: name of the field.
      widths: numbers of channels, one per level.
    """
    if len(widths) > MAX_LEVELS:
        raise UserError(f"{where}: {field} has {len(widths)} entries: expected at most {MAX_LEVELS}")


def check_divisors(where: str, field: str, values: tuple[int, ...], widths: tuple[int, ...]) -> None:
    """Raises a `UserError` unless every value divides the width at the same position.

    Args:
      where: the file's name in the message.
      field: name of the field.
      values: values of the field.
      widths: numbers of channels.
    """
    for value, width in zip(values, widths, strict=True):
        if value < 1 or width % value:
            raise UserError(
                f"{where}: {field} = {value} is not implemented for {width} channels, which it does not divide"
            )


# Settings of runs


def setting(
    default: Any,
    meaning: str,
    *,
    at_least: int | float | None = None,
    above: int | float | None = None,
    at_most: int | float | None = None,
    below: int | float | None = None,
    choices: tuple | None = None,
    memory: str = "",
) -> Any:
    """Declares a field of `Settings`; floats have to be finite in any case.

    Args:
      default: default value.
      meaning: one sentence for ``--help-config``.
      at_least: lower bound that is allowed itself.
      above: lower bound that is not allowed itself.
      at_most: upper bound that is allowed itself.
      below: upper bound that is not allowed itself.
      choices: the allowed values; None allows all within the bounds.
      memory: what to do with the field if memory is short: ``lower``, ``raise``, or the value that it should have.
    """
    bounds = _bounds(at_least, above, at_most, below)
    metadata = {"meaning": meaning, "bounds": bounds, "choices": choices, "memory": memory}
    return dataclasses.field(default=default, metadata=metadata)


def _bounds(at_least: Any, above: Any, at_most: Any, below: Any) -> dict[str, int | float]:
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    return {name: bound for name, bound in bounds.items() if bound is not None}


def seed_setting(default: int, meaning: str) -> Any:
    """Declares a field of `Settings` that holds a random seed."""
    return setting(default, meaning, at_least=0, at_most=SEED_LIMIT - 1)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of all settings, which checks the range of every field.

    Attributes:
      GROUP: prefix of the fields' names in messages, such as ``spo.``.

    Raises:
      UserError: a value is out of range.
    """

    GROUP: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            self.require(_is_allowed(value, field.metadata), field.name, expected_of(field))

    def require(self, holds: bool, field: str, expected: str) -> None:
        """Raises a `UserError` about a field unless a condition holds.

        Args:
          holds: the condition.
          field: name of the field, without the group.
          expected: the allowed values in words.
        """
        if not holds:
            raise UserError(f"{self.locate(field)} = {shown(getattr(self, field))}: expected {expected}")

    def locate(self, field: str) -> str:
        """Returns the name of a field in messages."""
        return f"config field {self.GROUP}{field}"


def _is_allowed(value: Any, metadata: Mapping[str, Any]) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if metadata.get("choices") is not None:
        return value in metadata["choices"]
    bounds = metadata.get("bounds", {})
    if not isinstance(value, int | float):
        return True
    return (
        ("at_least" not in bounds or value >= bounds["at_least"])
        and ("above" not in bounds or value > bounds["above"])
        and ("at_most" not in bounds or value <= bounds["at_most"])
        and ("below" not in bounds or value < bounds["below"])
    )


def expected_of(field: dataclasses.Field) -> str:
    """Describes a field's range: ``1 or more``, ``more than 0 and finite``, ``0 to below 1``, ``'a' or 'b'``."""
    if field.metadata.get("choices") is not None:
        return " or ".join(map(repr, field.metadata["choices"]))
    bounds = field.metadata.get("bounds", {})
    low = f"{bounds['at_least']:.10g}" if "at_least" in bounds else None
    low = f"more than {bounds['above']:.10g}" if "above" in bounds else low
    if "at_most" in bounds:
        high = f"{bounds['at_most']:.10g}"
        return f"{low}{', at most' if 'above' in bounds else ' to'} {high}" if low is not None else f"at most {high}"
    if "below" in bounds:
        return f"{low} to below {bounds['below']:.10g}"
    is_float = field.type in (float, "float")
    if low is None:
        return "a finite number" if is_float else ""
    return (low if "above" in bounds else f"{low} or more") + (" and finite" if is_float else "")


def to_config(settings: Settings) -> ConfigDict:
    """Returns the settings as a ConfigDict, unlocked so that a config file can change it."""
    return ConfigDict(dataclasses.asdict(settings))


def from_config(cls: type, config: Any) -> Any:
    """Reads nested settings from a ConfigDict or a dict.

    Args:
      cls: class of the settings.
      config: values of the fields; fields may be missing if they have a default.

    Raises:
      UserError: ``config`` is something else; or a field is unknown (the message names the nearest known one), is
        missing and has no default, has another type, or is out of range.
    """
    config = config.to_dict() if isinstance(config, ConfigDict) else config
    if not isinstance(config, Mapping):
        raise UserError(f"the config is {config!r}: expected a group of fields")
    return _read_group(cls, config, lambda name: f"config field {name}", "the config")


def describe(settings: Settings, prefix: str = "") -> Iterator[tuple[str, str, str, str, str]]:
    """Lists all fields of settings and of the groups inside them.

    Args:
      settings: the settings.
      prefix: prefix of the names.

    Yields:
      (name, type, value, range, meaning) of each field.
    """
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from describe(value, f"{prefix}{field.name}.")
        else:
            kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
            kind = kind if "[" not in str(field.type) else str(field.type)
            meaning = field.metadata.get("meaning", "")
            yield f"{prefix}{field.name}", kind, repr(value), expected_of(field), meaning

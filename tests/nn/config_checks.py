"""Checks that the reader of every ``config.json`` has to pass."""

import dataclasses
import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from spo_jax.core.errors import UserError

WHERE = "folder/config.json"


def check_value_is_refused(reader: type, published: Mapping[str, Any], field: str, value: Any) -> None:
    """A published config with one unsupported value raises in one line that names file and field."""
    with pytest.raises(UserError, match=rf"^{re.escape(WHERE)}: .*{field}") as error:
        reader.from_dict(published | {field: value}, WHERE)
    assert "\n" not in str(error.value)


def check_unknown_field_is_refused(reader: type, published: Mapping[str, Any]) -> None:
    """A misspelt field raises, while the library's own notes, which begin with an underscore, are skipped."""
    with pytest.raises(UserError, match=rf"^{WHERE}: atention_bias is not a field of {reader.__name__}"):
        reader.from_dict(published | {"atention_bias": True}, WHERE)
    reader.from_dict(published | {"_diffusers_version": "0.1"}, WHERE)


def check_fixed_fields_are_tried(reader: type, tried: Iterable[str]) -> None:
    """Every fixed field needs a line in the list of unsupported values, so that it is refused under its own name."""
    assert reader.FIXED.keys() <= set(tried)


def check_defaults(reader: type, defaults: Mapping[str, Any]) -> None:
    """A missing field has the library's default, and the reader knows every argument of today's library.

    Old files leave out the fields that their library did not have yet.
    """
    assert reader.from_dict({}) == reader.from_dict(defaults)
    assert {field.name for field in dataclasses.fields(reader)} <= defaults.keys()


def diffusers_defaults(model: type) -> dict[str, Any]:
    """The default arguments of a diffusers model."""
    parameters = inspect.signature(model.__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}

"""Training methods. Each method is a subpackage; it is found by its name, or by a dotted path if it is a user's own."""

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from spo_jax.core.config import describe, from_config, to_config
from spo_jax.core.errors import UserError
from spo_jax.core.lookup import find_module, module_names
from spo_jax.core.renamed import renamed_value
from spo_jax.run.diagnosis import shared
from spo_jax.run.diagnosis.rule import Rule
from spo_jax.run.settings import RunSettings

_PARTS = ("Settings", "read_data", "setup")


def load_method(name: str) -> ModuleType:
    """Imports the module of a method; see `spo_jax.methods.base.Method`.

    Args:
      name: a name in `spo_jax.methods`, or a dotted path.

    Raises:
      UserError: there is no such method, or the module lacks one of a method's members.
    """
    module = find_module(__name__, name, "config field method")
    missing = [part for part in _PARTS if part not in dir(module)]  # hasattr would import what is late
    if missing:
        raise UserError(f"config field method = {name!r}: {module.__name__} has no {', '.join(missing)}")
    return module


def rules_of(name: str) -> list[Rule]:
    """Returns the rules that say what the curves of a method's runs should look like.

    Raises:
      UserError: as in `load_method`.
    """
    return [*shared.RULES, *getattr(load_method(name), "RULES", ())]


def default_config(name: str) -> ConfigDict:
    """Returns the default settings of a method, unlocked so that a config file can change them.

    Raises:
      UserError: as in `load_method`.
    """
    return to_config(dataclasses.replace(load_method(name).Settings(), method=name))


def read_settings(config: ConfigDict | Mapping[str, Any]) -> RunSettings:
    """Reads the settings of the method that the config's field ``method`` names.

    Raises:
      UserError: there is no config, it does not name a method, or a field is unknown, of another type or out of range.
    """
    if not isinstance(config, ConfigDict | Mapping):
        raise UserError(f"the config is {config!r:.100}: expected one such as spo_jax.load_config('toy')")
    name = config.get("method")
    if not isinstance(name, str):
        known = ", ".join(map(repr, module_names(__name__)))
        raise UserError(f"config field method is missing: expected the name of a training method, such as {known}")
    try:
        settings = from_config(load_method(name).Settings, config)
    except UserError as error:
        if "is not a field of" not in str(error):
            raise
        hint = f"the config's method is {name!r}, whose configs start from default_config({name!r})"
        raise UserError(f"{error}; {hint}") from error
    for field, _, value, _, _ in describe(settings):
        new = renamed_value(field, value.strip("'"))
        if new is not None:
            raise UserError(f"config field {field} = {value}: this is now {new!r}")
    return settings

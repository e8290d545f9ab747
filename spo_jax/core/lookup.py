"""Modules found by name: a method, a reward or a source of data is a module, ours or a user's own."""

import importlib
import importlib.util
import os
import pkgutil
import sys
from types import ModuleType

from spo_jax.core.errors import UserError


def find_module(package: str, name: str, where: str) -> ModuleType:
    """The module ``name`` of a package of ours, or, where the name has dots, a user's own.

    Args:
      package: such as ``spo_jax.methods``.
      name: ``spo``, or a dotted path such as ``my_package.my_method``, which is looked for in the current folder too.
      where: the flag or config field that holds the name, for messages.

    Raises:
      UserError: there is no such module; ours are listed.
    """
    if "." in name:
        return _import_dotted(name, where)
    known = module_names(package)
    if name not in known:
        listed = ", ".join(map(repr, known))
        raise UserError(f"{where} = {name!r}: expected {listed}, or the dotted path of a module of your own")
    return importlib.import_module(f"{package}.{name}")


def module_names(package: str) -> list[str]:
    """The names that `find_module` knows: a package's modules except ``base`` and what they share, ``common``."""
    path = importlib.import_module(package).__path__
    return [module.name for module in pkgutil.iter_modules(path) if module.name not in ("base", "common")]


def _import_dotted(name: str, where: str) -> ModuleType:
    if os.getcwd() not in sys.path:  # commands that pip installs do not look into the current folder
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # An import that fails inside the user's module is a fault of that module and keeps its traceback.
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        raise UserError(f"{where} = {name!r}: no module of that name can be imported from {os.getcwd()}") from error

"""Lookup of modules by name: a method, a reward or a source of data is a module of the package or of the user."""

import difflib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

from spo_jax.core.errors import UserError


def find_module(package: str, name: str, where: str, expected: Sequence[str] = ()) -> ModuleType:
    """Imports the module ``name`` of one of our packages or, if the name has dots, a module of the user.

    Args:
      package: name of our package, such as ``spo_jax.methods``.
      name: name of a module, such as ``spo``, or a dotted path, such as ``my_package.my_method``, which is also looked
        up in the current folder.
      where: flag or config field that holds the name, for messages.
      expected: what the message lists if only some of our modules will do.

    Raises:
      UserError: there is no such module; the message lists ours.
    """
    if "." in name:
        return _import_dotted(name, where)
    known = module_names(package)
    if name not in known:
        listed = ", ".join(map(repr, expected or known))
        near = difflib.get_close_matches(name, expected or known, 1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"{where} = {name!r}: {meant}expected {listed}, or the dotted path of a module of your own")
    return importlib.import_module(f"{package}.{name}")


def module_names(package: str) -> list[str]:
    """Lists the names that `find_module` knows: a package's modules except the shared ones, ``base`` and ``common``."""
    path = importlib.import_module(package).__path__
    return [module.name for module in pkgutil.iter_modules(path) if module.name not in ("base", "common")]


def _import_dotted(name: str, where: str) -> ModuleType:
    if os.getcwd() not in sys.path:  # commands that pip installs do not search the current folder
        sys.path.append(os.getcwd())
    not_found = f"{where} = {name!r}: no module of that name can be imported from {os.getcwd()}"
    if name.startswith("."):  # a relative import, which importlib refuses with a TypeError
        raise UserError(not_found)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # An import that fails inside the user's module is a fault of that module and keeps its traceback.
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        raise UserError(not_found) from error

"""Members of a package that are imported when they are first used, because their modules import jax."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def late(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes the functions ``__getattr__`` and ``__dir__`` of a package (PEP 562).

    Args:
      package: the package's ``__name__``.
      homes: module of each late member, by the member's name; a member may also be such a module itself.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(homes[name])
        return module if module.__name__ == f"{package}.{name}" else getattr(module, name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, names

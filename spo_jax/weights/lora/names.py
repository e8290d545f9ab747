"""What this package has to know about the names of a model family's modules."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol


class ModuleNames(Protocol):
    """Kohya's names for the modules of one model family, which are in the family's module ``kohya``."""

    @staticmethod
    def architecture(names: Iterable[str]) -> str | None:
        """Returns the kind of model that names of modules show, or None if they could belong to several."""

    @staticmethod
    def file_names(modules: Iterable[str], model: Iterable[str] | None = None) -> dict[str, str]:
        """Maps torch's names of modules to the names in kohya's files."""

    @staticmethod
    def module_names(modules: Iterable[str]) -> dict[str, str]:
        """Maps kohya's names in all their forms to the torch names of the given modules."""


# A function from names of modules, torch's or kohya's, to the `ModuleNames` of the family that has them.
FindNames = Callable[[Iterable[str]], Any]

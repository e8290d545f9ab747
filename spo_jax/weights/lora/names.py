"""What this package has to know about the names of a model family's modules."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol


class BaseVersion(NamedTuple):
    """What other programs call the kind of model to which a LoRA belongs.

    Attributes:
      kohya: kohya's name, such as ``sd_v1``; web UIs take it from ``ss_base_model_version``.
      spec: the model spec's ID, such as ``stable-diffusion-v1``.
      implementation: the code base whose names of modules a file in kohya's format has, as kohya writes it.
    """

    kohya: str
    spec: str
    implementation: str


class ModuleNames(Protocol):
    """Kohya's names for the modules of one model family, which are in the family's module ``kohya``."""

    @staticmethod
    def architecture(names: Iterable[str]) -> str | None:
        """Returns the kind of model that names of modules show, or None if they could belong to several."""

    @staticmethod
    def base_version(widths: Mapping[str, int], prediction: str | None) -> BaseVersion | None:
        """Returns what other programs call the model whose modules have these input widths, or None if nothing."""

    @staticmethod
    def file_names(modules: Iterable[str], model: Iterable[str] | None = None) -> dict[str, str]:
        """Maps torch's names of modules to the names in kohya's files."""

    @staticmethod
    def module_names(modules: Iterable[str]) -> dict[str, str]:
        """Maps kohya's names in all their forms to the torch names of the given modules."""


# A function from names of modules, torch's or kohya's, to the `ModuleNames` of the family that has them.
FindNames = Callable[[Iterable[str]], Any]

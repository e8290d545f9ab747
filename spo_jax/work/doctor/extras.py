"""What is installed for which feature, and the line of pip that installs what is missing."""

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import spo_jax


class Extra(NamedTuple):
    """Something that can be installed beside the package.

    Attributes:
      purpose: what it is for.
      modules: what has to be importable; of names with ``|`` between them, one.
      is_package: whether pip installs a package of this name, and not an extra of ours.
    """

    purpose: str
    modules: tuple[str, ...]
    is_package: bool = False

    @property
    def missing(self) -> list[str]:
        """The modules that are not there."""
        return [name for name in self.modules if not any(has_module(one) for one in name.split("|"))]


# The extras of setup.py that users install; a test compares them.
EXTRAS: Mapping[str, Extra] = {
    "data": Extra(
        "preparing preference pairs and training preference models",
        ("array_record", "grain", "importlib_resources", "pyarrow", "tensorflow_datasets"),
    ),
    "demo": Extra("the page to try and to vote on", ("gradio",)),
    "gpu": Extra("NVIDIA GPUs", ("jax_cuda12_plugin|jax_cuda13_plugin",)),
    "tpu": Extra("TPUs", ("libtpu",)),
    "interop": Extra("loading what we write in diffusers, peft and torch", ("diffusers", "peft", "torch")),
    "wandb": Extra("curves on Weights & Biases", ("wandb",)),
    "tensorboard": Extra("looking at the curves in runs/*/tensorboard", ("tensorboard",), is_package=True),
}


def has_module(name: str) -> bool:
    """Whether a module can be imported, without importing it."""
    return importlib.util.find_spec(name) is not None


def pip_line(extra: str) -> str:
    """Returns the command that installs an extra for this copy of the package."""
    if EXTRAS[extra].is_package:
        return f"pip install {extra}"
    checkout = Path(spo_jax.__file__).parents[1]
    if (checkout / "setup.py").is_file():
        return f'pip install -e "{"." if Path.cwd() == checkout else checkout}[{extra}]"'
    try:
        home = importlib.metadata.metadata("spo_jax")["Home-page"]
    except importlib.metadata.PackageNotFoundError:
        home = None
    return f'pip install "spo_jax[{extra}] @ git+{home}"' if home else f'pip install "spo_jax[{extra}]"'


def unmet() -> list[str]:
    """Returns the base requirements that are not met, as ``jax>=0.10: 0.9 is installed``; none if none are known."""
    from packaging.requirements import Requirement

    try:
        wanted = importlib.metadata.requires("spo_jax") or []
    except importlib.metadata.PackageNotFoundError:  # a checkout on the path that was never installed
        return []
    found = []
    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{requirement} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement.name}{requirement.specifier} is required, and {version} is installed")
    return found

"""LoRA files of all model families; `spo_jax.weights.lora` describes their layouts."""

import os
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

from spo_jax.core.errors import UserError
from spo_jax.core.trees import flatten
from spo_jax.models import families, family_module
from spo_jax.weights import lora as files
from spo_jax.weights.lora import LoRA


def names_of(modules: Iterable[str]) -> ModuleType:
    """Returns the ``kohya`` module of the family that claims these modules, or that of the first family if none does.

    Args:
      modules: names of modules, torch's or kohya's.
    """
    modules = list(modules)
    candidates = [family_module(family, "kohya") for family in families()]
    return next((names for names in candidates if names.claims(modules)), candidates[0])


def check_fits(lora: Mapping[str, Any], network: Mapping[str, Any], source: str, model: str) -> None:
    """Refuses an adapter that was trained on another model.

    Args:
      lora: tree of the adapter's halves, of arrays or shapes.
      network: tree of the network's weights, of arrays or shapes.
      source: where the adapter comes from, for the message.
      model: name of the network's model, for the message.

    Raises:
      UserError: a module is not in the network, or has another shape there.
    """
    weights = flatten(network)
    halves = flatten(lora)
    wrong = []
    for module in sorted({path.rpartition("/")[0] for path in halves}):
        kernel = weights.get(f"{module}/kernel")
        shape = (halves[f"{module}/lora_A"].shape[0], halves[f"{module}/lora_B"].shape[-1])
        if kernel is None or kernel.shape != shape:
            wrong.append(module)
    if wrong:
        raise UserError(
            f"{source} was trained on another model than {model}: {len(wrong)} of its modules are not there or have "
            f"another shape, such as {wrong[0]}; name its own base model with --model"
        )


def read_lora(path: str | os.PathLike, module_shapes: Mapping[str, Any] | None = None) -> LoRA:
    """Reads a LoRA in diffusers', PEFT's or kohya's layout; see `spo_jax.weights.lora.read_lora`."""
    return files.read_lora(path, module_shapes, names_of)


def write_lora(
    path: str | os.PathLike,
    lora: LoRA,
    format: str = "diffusers",
    metadata: Mapping[str, str] | None = None,
    module_shapes: Mapping[str, Any] | None = None,
) -> None:
    """Writes a LoRA in diffusers' or kohya's layout; see `spo_jax.weights.lora.write_lora`."""
    files.write_lora(path, lora, format, metadata, module_shapes, find_names=names_of)

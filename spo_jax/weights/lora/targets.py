"""The modules of a model that a LoRA may change."""

from collections.abc import Mapping
from typing import Any

from spo_jax.core.trees import flatten
from spo_jax.weights.rules import module_name

Targets = Mapping[str, tuple[int, int] | None]


def targets_of(shapes: Mapping[str, Any]) -> Targets:
    """Maps torch's names of modules to (in, out), or to None for a module whose weight is not that of a Dense layer.

    Args:
      shapes: tree of the shapes of a network's parameters, or of its LoRA collection.
    """
    flat = {tuple(path.split("/")): tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
    targets: dict[str, tuple[int, int] | None] = {}
    for path, shape in flat.items():
        *module, leaf = path
        if leaf in ("kernel", "embedding"):
            targets[module_name(module)] = shape if leaf == "kernel" and len(shape) == 2 else None
        elif leaf == "lora_A":
            targets[module_name(module)] = (shape[0], flat[*module, "lora_B"][1])
    return targets

"""A LoRA in memory."""

import dataclasses
from typing import Any

import numpy as np

from spo_jax.core.trees import flatten, unflatten
from spo_jax.weights.rules import module_name


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank updates of a network's Dense layers.

    Attributes:
      tree: module paths of the parameter tree, each with float32 ``lora_A`` [in r] and ``lora_B`` [r out].
      alpha: numerator of the scale; the update of a module is ``lora_A @ lora_B * alpha / rank``.
      rank: r, which is the same for all modules.

    Raises:
      ValueError: a module lacks a half, or its shapes disagree with the rank.
    """

    tree: dict[str, Any]
    alpha: float | int
    rank: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", float(self.alpha))
        for name, (lora_a, lora_b) in self.modules().items():
            if lora_a.ndim != 2 or lora_b.ndim != 2 or lora_a.shape[1] != self.rank or lora_b.shape[0] != self.rank:
                raise ValueError(f"{name}: lora_A {lora_a.shape}, lora_B {lora_b.shape} are not of rank {self.rank}")

    def modules(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Maps torch's names of modules, sorted, to (lora_A [in r], lora_B [r out])."""
        flat = flatten(self.tree)
        paths = sorted({path.rpartition("/")[0] for path in flat})
        halves = [{f"{path}/lora_A", f"{path}/lora_B"} for path in paths]
        if not paths or set().union(*halves) != flat.keys():
            raise ValueError("every module of a LoRA tree has lora_A and lora_B, and nothing else")
        return {module_name(path.split("/")): (flat[f"{path}/lora_A"], flat[f"{path}/lora_B"]) for path in paths}

    def folded(self) -> "LoRA":
        """Returns the same updates with alpha = rank: alpha / rank is multiplied into ``lora_B``."""
        if self.alpha == self.rank:
            return self
        scale = np.float32(self.alpha / self.rank)
        flat = flatten(self.tree)
        for path in flat:
            if path.endswith("/lora_B"):
                flat[path] = np.asarray(flat[path], np.float32) * scale
        return LoRA(unflatten(flat), self.rank, self.rank)

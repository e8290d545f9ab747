"""The layouts of LoRA files: which tensors belong to which module.

In the diffusers layout the name of a module is torch's. It was written in several forms over the years:

- ``unet.MODULE.lora.down.weight``: diffusers, since 0.18.
- ``unet.ATTENTION.processor.to_q_lora.down.weight``, also without ``unet.``: diffusers before that.
- ``base_model.model.MODULE.lora_A.weight``, also behind ``unet.``: PEFT, and training scripts that save its weights.
- ``unet.MODULE.lora_A.weight``, ``unet.MODULE.lora_A.default.weight``: models of diffusers with an adapter of PEFT.

In the kohya layout a module is ``lora_unet_`` and its name with underscores, which only the names of a model's modules
can resolve.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from spo_jax.core.errors import UserError

_DIFFUSERS_KEY = re.compile(
    r"""(?P<module>.+?)
    (?: \.(?:lora|lora_linear_layer)\.
      | (?:\.processor)?\.(?P<old>to_(?:q|k|v|out))_lora\.
      | \.lora_(?=[AB])
    )
    (?P<half>down|up|A|B)(?:\.\w+)?\.weight""",
    re.VERBOSE,
)
PREFIXES = re.compile(r"^(?:unet\.|base_model\.model\.)*")  # of names of modules, in any order
_KOHYA_KEY = re.compile(r"(?P<module>lora_[^.]+)\.(?:lora_(?P<half>down|up)\.weight|(?P<alpha>alpha))")
_OLD_NAMES = {"to_out": "to_out.0"}
_HALVES = {"down": "down", "up": "up", "A": "down", "B": "up"}


@dataclasses.dataclass
class Module:
    """The tensors of one module in a file, in torch's layout.

    Attributes:
      down: ``lora_A`` transposed, [r in].
      up: ``lora_B`` transposed, [out r].
      alpha: numerator of the scale; None if the file has no alpha, which means a scale of 1.
      keys: the tensors' names in the file, by half.
    """

    down: np.ndarray | None = None
    up: np.ndarray | None = None
    alpha: float | None = None
    keys: dict[str, str] = dataclasses.field(default_factory=dict)

    def put(self, half: str, key: str, array: np.ndarray) -> bool:
        """Stores a half; returns False if the module already had it."""
        is_new = half not in self.keys
        setattr(self, half, array)
        self.keys[half] = key
        return is_new

    @property
    def rank(self) -> int:
        """The rank, which the first half shows."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """The factor of the update."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


Collected = tuple[dict[str, Module], list[str]]


def is_kohya(state: Mapping[str, np.ndarray]) -> bool:
    """Reports whether a file is in kohya's layout."""
    return any(key.startswith("lora_") for key in state)


def collect_diffusers(state: Mapping[str, np.ndarray]) -> Collected:
    """Groups the tensors of a file in diffusers' or PEFT's layout by module; also returns the unknown keys."""
    modules: dict[str, Module] = {}
    unknown = []
    for key, array in state.items():
        match = _DIFFUSERS_KEY.fullmatch(key)
        if match is None:
            unknown.append(key)
            continue
        name = PREFIXES.sub("", match["module"])
        if match["old"]:
            name += f".{_OLD_NAMES.get(match['old'], match['old'])}"
        half = _HALVES[match["half"]]
        if not modules.setdefault(name, Module()).put(half, key, array):
            unknown.append(f"{key} (a second {half})")
    return modules, unknown


def collect_kohya(state: Mapping[str, np.ndarray], names: Mapping[str, str], path: Path) -> Collected:
    """Groups the tensors of a file in kohya's layout by module; also returns the unknown keys.

    Args:
      state: the tensors.
      names: torch's names of the modules, by kohya's.
      path: the file, for messages.

    Raises:
      UserError: an alpha is not a finite number.
    """
    modules: dict[str, Module] = {}
    alphas: dict[str, float] = {}
    unknown = []
    for key, array in state.items():
        match = _KOHYA_KEY.fullmatch(key)
        if match is None:
            unknown.append(key)
            continue
        # A name that the model does not have is kept, so that the message can list it.
        name = names.get(match["module"], match["module"])
        if match["alpha"]:
            alphas[name] = _alpha(path, key, array)
        elif not modules.setdefault(name, Module()).put(match["half"], key, array):
            unknown.append(f"{key} (a second {match['half']})")
    for name, alpha in alphas.items():
        if name in modules:
            modules[name].alpha = alpha
        else:
            unknown.append(f"{name}.alpha")
    return modules, unknown


def _alpha(path: Path, key: str, array: np.ndarray) -> float:
    """Returns an alpha, which is stored as a scalar or, by some programs, as a vector of one element."""
    if array.size != 1:
        raise UserError(f"{path}: {key} has shape {list(array.shape)}, expected one number")
    alpha = float(array.reshape(()))
    if not np.isfinite(alpha):
        raise UserError(f"{path}: {key} is {alpha}, expected a finite number")
    return alpha

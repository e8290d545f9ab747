"""Reads and writes LoRA files in the layouts of diffusers and of kohya (web UIs), with their scale intact.

delta W = lora_A lora_B * alpha / rank, with lora_A [in r] and lora_B [r out] (torch stores both transposed).
The diffusers layout stores alpha in the safetensors metadata (``lora_adapter_metadata``; diffusers refuses a file with
an ``.alpha`` tensor), and the kohya layout in one ``.alpha`` tensor per module.

Kohya's names of modules differ between model families; `spo_jax.models.lora` binds the functions here to them.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json
from spo_jax.core.trees import flatten, unflatten
from spo_jax.weights import store
from spo_jax.weights.messages import shorten
from spo_jax.weights.rules import module_name, module_path

METADATA_KEY = "lora_adapter_metadata"
FILE_NAME = "pytorch_lora_weights.safetensors"
LORA_FORMATS = ("diffusers", "kohya")

_DIFFUSERS_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.(?:lora\.(?P<half>down|up)|lora_(?P<peft>[AB])(?:\.\w+)?)\.weight"
)
_KOHYA_KEY = re.compile(r"(?P<module>lora_[^.]+)\.(?:lora_(?P<half>down|up)\.weight|(?P<alpha>alpha))")
_TEXT_ENCODERS = ("text_encoder", "lora_te")

# Parts of a file that cannot be used, as messages call them.
_TEXT_PARTS = "parts of a text encoder"
_CONVOLUTIONS = "convolutions"
_NO_TARGETS = "modules this model does not have (or not as LoRA targets)"
_HALVES = "halves without their partner"
_SHAPES = "of another shape"
_OTHER_TENSORS = "tensors that are not LoRA weights"


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


@dataclasses.dataclass
class _Module:
    """The tensors of one module in a file, in torch's layout.

    Attributes:
      down: ``lora_A`` transposed, [r in].
      up: ``lora_B`` transposed, [out r].
      alpha: numerator of the scale; None if the file has no alpha, which means a scale of 1.
    """

    down: np.ndarray | None = None
    up: np.ndarray | None = None
    alpha: float | None = None

    def put(self, half: str, array: np.ndarray) -> bool:
        """Stores a half; returns False if the module already had it."""
        is_new = getattr(self, half) is None
        setattr(self, half, array)
        return is_new

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank


def read_lora(path: str | os.PathLike, module_shapes: Mapping[str, Any] | None, find_names: FindNames) -> LoRA:
    """Reads a LoRA of a diffusion network, in diffusers', PEFT's or kohya's layout.

    Args:
      path: the file, or a folder with ``pytorch_lora_weights.safetensors``.
      module_shapes: tree of the model that the LoRA belongs to: the shapes of its parameters, all of whose Dense layers
        are targets, or those of its LoRA collection, whose modules alone are targets. Files with kohya's names cannot
        be read without it. If it is given, targets and shapes are checked.
      find_names: finds the names of the family that has the modules.

    Returns:
      The LoRA, with one alpha for all modules. If modules differ in scale, it is folded into lora_B (then alpha is the
      rank); modules of a smaller rank are padded with zeros.

    Raises:
      UserError: the path is not a LoRA file; the LoRA is of SDXL and the model is SD 1.x or 2.x, or the reverse; the
        file has parts of a text encoder, convolutions, modules this model does not have, halves without their partner,
        or shapes that do not fit.
    """
    path = _lora_file(Path(path))
    state = store.read_file(path)
    metadata = store.read_metadata(path)
    targets = None if module_shapes is None else _targets(module_shapes)
    if any(key.startswith("lora_") for key in state):
        if targets is None:
            raise UserError(f"{path} has kohya's names, which can only be read with a model: name the model as well")
        modules, unknown = _collect_kohya(state, find_names(targets).module_names(targets))
    else:
        modules, unknown = _collect_diffusers(state)
        _read_alphas(modules, metadata, path)
    _check_targets(path, modules, unknown, targets, find_names)
    return _unify(modules)


def write_lora(
    path: str | os.PathLike,
    lora: LoRA,
    format: str = "diffusers",
    metadata: Mapping[str, str] | None = None,
    module_shapes: Mapping[str, Any] | None = None,
    *,
    find_names: FindNames,
) -> None:
    """Writes a LoRA that ``pipe.load_lora_weights`` reads with the right scale, including alpha.

    Args:
      path: file to write; diffusers looks for ``pytorch_lora_weights.safetensors`` in a folder.
      lora: the updates, which are written in float32.
      format: ``diffusers``, or ``kohya`` for the web UIs (with SGM's block names for SDXL).
      metadata: additional text for the header.
      module_shapes: tree of the LoRA's model, as in `read_lora`. SDXL's blocks are numbered from it in kohya's format;
        it is not needed for a LoRA on all attentions.
      find_names: finds the names of the family that has the modules.

    Raises:
      UserError: the file cannot be written.
      ValueError: the format is unknown.
    """
    if format not in LORA_FORMATS:
        raise ValueError(f"format {format!r}: expected {' or '.join(LORA_FORMATS)}")
    # Collect the tensors.
    state: dict[str, np.ndarray] = {}
    if format == "kohya":
        model = None if module_shapes is None else _targets(module_shapes)
        flat_names = find_names(lora.modules()).file_names(lora.modules(), model)
    for name, (lora_a, lora_b) in lora.modules().items():
        down = np.asarray(lora_a, np.float32).T  # [in r] -> [r in]
        up = np.asarray(lora_b, np.float32).T  # [r out] -> [out r]
        if format == "kohya":
            flat = flat_names[name]
            state[f"{flat}.lora_down.weight"] = down
            state[f"{flat}.lora_up.weight"] = up
            state[f"{flat}.alpha"] = np.float32(lora.alpha)
        else:
            state[f"unet.{name}.lora.down.weight"] = down
            state[f"unet.{name}.lora.up.weight"] = up
    # Write them with the header.
    header = dict(metadata or {})
    if format == "diffusers":
        header[METADATA_KEY] = _adapter_metadata(lora)
    store.write_state(path, state, header)


def _adapter_metadata(lora: LoRA) -> str:
    """Returns the adapter's config as diffusers writes it to the header of a file."""
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    config = {"r": lora.rank, "lora_alpha": alpha, "peft_type": "LORA", "target_modules": list(lora.modules())}
    return json.dumps({f"unet.{key}": value for key, value in config.items()}, sort_keys=True)


def _lora_file(path: Path) -> Path:
    """Finds the LoRA file in a folder."""
    if not path.is_dir():
        return path
    if (path / FILE_NAME).is_file():
        return path / FILE_NAME
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        names = shorten(entry.name for entry in found) or "no safetensors file"
        raise UserError(f"{path}: expected {FILE_NAME}, found {names}; name the LoRA file itself")
    return found[0]


def _targets(shapes: Mapping[str, Any]) -> dict[str, tuple[int, int] | None]:
    """Maps torch's names of modules to (in, out), or to None for a module whose weight is not that of a Dense layer."""
    flat = {tuple(path.split("/")): tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
    targets: dict[str, tuple[int, int] | None] = {}
    for path, shape in flat.items():
        *module, leaf = path
        if leaf in ("kernel", "embedding"):
            targets[module_name(module)] = shape if leaf == "kernel" and len(shape) == 2 else None
        elif leaf == "lora_A":
            targets[module_name(module)] = (shape[0], flat[*module, "lora_B"][1])
    return targets


def _collect_diffusers(state: Mapping[str, np.ndarray]) -> tuple[dict[str, _Module], list[str]]:
    """Groups the tensors of a file in diffusers' or PEFT's layout by module; also returns the unknown keys."""
    modules: dict[str, _Module] = {}
    unknown = []
    for key, array in state.items():
        match = _DIFFUSERS_KEY.fullmatch(key)
        if match is None:
            unknown.append(key)
            continue
        module = modules.setdefault(match["module"].removeprefix("unet."), _Module())
        half = match["half"] or {"A": "down", "B": "up"}[match["peft"]]
        if not module.put(half, array):
            unknown.append(f"{key} (a second {half})")
    return modules, unknown


def _collect_kohya(
    state: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> tuple[dict[str, _Module], list[str]]:  # fmt: skip
    """Groups the tensors of a file in kohya's layout by module; also returns the unknown keys."""
    modules: dict[str, _Module] = {}
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
            alphas[name] = float(array)
        elif not modules.setdefault(name, _Module()).put(match["half"], array):
            unknown.append(f"{key} (a second {match['half']})")
    for name, alpha in alphas.items():
        if name in modules:
            modules[name].alpha = alpha
        else:
            unknown.append(f"{name}.alpha")
    return modules, unknown


def _read_alphas(modules: Mapping[str, _Module], metadata: Mapping[str, str], path: Path) -> None:
    """Sets every module's alpha from the adapter's config in the file's header, or in PEFT's file beside it."""
    config_file = path.parent / "adapter_config.json"
    try:
        if METADATA_KEY in metadata:
            config = json.loads(metadata[METADATA_KEY])
        else:
            config = read_json(config_file) if config_file.is_file() else {}
        # In a pipeline's file keys start with the component; in a single model's file they do not.
        config = {key.removeprefix("unet."): value for key, value in config.items()}
        if config.get("use_dora"):
            raise UserError(f"{path} is a DoRA, which is not supported")
        for name, module in modules.items():
            alpha = _pattern_value(config.get("alpha_pattern") or {}, name, config.get("lora_alpha"))
            if alpha is not None and module.down is not None:
                # Rank-stabilised LoRA divides by the root of the rank; alpha absorbs the difference.
                module.alpha = float(alpha) * (math.sqrt(module.rank) if config.get("use_rslora") else 1.0)
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise UserError(f"{path}: cannot understand the adapter's config ({METADATA_KEY}): {error}") from error


def _pattern_value(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    # As in peft.utils.get_pattern_key, the pattern matches the end of the name after a dot.
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _check_targets(
    path: Path,
    modules: Mapping[str, _Module],
    unknown: list[str],
    targets: Mapping[str, Any] | None,
    find_names: FindNames,
) -> None:
    """Refuses a file with anything other than pairs of halves on the model's linear layers, and lists the rest."""
    if not modules:
        raise UserError(f"{path} is not a LoRA file: none of its {len(unknown)} tensors is half of a LoRA layer")
    problems: dict[str, list[str]] = {
        _TEXT_PARTS: [],
        _CONVOLUTIONS: [],
        _NO_TARGETS: [],
        _HALVES: [],
        _SHAPES: [],
        _OTHER_TENSORS: [],
    }
    for key in unknown:
        problem = _TEXT_PARTS if key.startswith(_TEXT_ENCODERS) else _OTHER_TENSORS
        problems[problem].append(key)
    _check_architecture(path, [*modules, *unknown], targets, find_names)
    for name, module in modules.items():
        problem = _problem(name, module, targets)
        if problem is not None:
            problems[problem].append(name)
    found = [f"{len(names)} {problem}: {shorten(names)}" for problem, names in problems.items() if names]
    if found:
        raise UserError(f"{path}: only LoRA on linear layers of the UNet can be used; found {'; '.join(found)}")


def _check_architecture(
    path: Path, names: list[str], targets: Mapping[str, Any] | None, find_names: FindNames
) -> None:  # fmt: skip
    """Refuses a LoRA whose names are those of another kind of model."""
    family = find_names(targets or names)
    theirs = family.architecture(names)
    ours = family.architecture(targets or ())
    if theirs and ours and theirs != ours:
        raise UserError(f"{path} is a LoRA of {theirs}, and this model is {ours}: choose a LoRA of the same kind")


def _problem(name: str, module: _Module, targets: Mapping[str, Any] | None) -> str | None:
    """Returns the reason why a module cannot be used, or None if it can."""
    if name.startswith(_TEXT_ENCODERS):
        return _TEXT_PARTS
    if any(half is not None and half.ndim != 2 for half in (module.down, module.up)):
        return _CONVOLUTIONS
    if targets is not None and name not in targets:
        return _NO_TARGETS
    if targets is not None and targets[name] is None:
        return _CONVOLUTIONS
    if module.down is None or module.up is None:
        return _HALVES
    found = (module.down.shape[1], module.up.shape[0])
    expected = found if targets is None else targets[name]
    fits = found == expected and module.down.shape[0] == module.up.shape[1]
    return None if fits else _SHAPES


def _unify(modules: Mapping[str, _Module]) -> LoRA:
    """Gives all modules one rank and one alpha without changing any update."""
    rank = max(module.rank for module in modules.values())
    scales = {module.scale for module in modules.values()}
    alphas = {module.alpha for module in modules.values()}
    fold = len(scales) > 1
    if fold or alphas == {None}:
        alpha = float(rank)
    else:  # A common alpha is kept as it is, because alpha / rank * rank would round.
        alpha = alphas.pop() if len(alphas) == 1 else scales.pop() * rank
    flat: dict[str, np.ndarray] = {}
    for name, module in modules.items():
        lora_a = module.down.T.astype(np.float32)  # [r in] -> [in r]
        lora_b = module.up.T.astype(np.float32)  # [out r] -> [r out]
        if fold:
            lora_b = lora_b * np.float32(module.scale)
        missing = rank - module.rank
        path = "/".join(module_path(name))
        flat[f"{path}/lora_A"] = np.ascontiguousarray(np.pad(lora_a, ((0, 0), (0, missing))))
        flat[f"{path}/lora_B"] = np.ascontiguousarray(np.pad(lora_b, ((0, missing), (0, 0))))
    return LoRA(unflatten(flat), alpha, rank)

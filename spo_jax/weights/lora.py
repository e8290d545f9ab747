"""LoRA files: the diffusers layout and the kohya/webui one, read and written with their scale intact.

delta W = lora_A lora_B * alpha / rank, with lora_A [in r] and lora_B [r out] (torch stores both transposed).
alpha lives in the safetensors metadata of the diffusers layout (``lora_adapter_metadata``; an ``.alpha`` tensor there
makes diffusers refuse the file) and in one ``.alpha`` tensor per module of the kohya layout.

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

_DIFFUSERS_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.(?:lora\.(?P<half>down|up)|lora_(?P<peft>[AB])(?:\.\w+)?)\.weight"
)
_KOHYA_KEY = re.compile(r"(?P<module>lora_[^.]+)\.(?:lora_(?P<half>down|up)\.weight|(?P<alpha>alpha))")
_TEXT_ENCODERS = ("text_encoder", "lora_te")


class ModuleNames(Protocol):
    """Kohya's names for the modules of one model family (the family's module ``kohya``)."""

    @staticmethod
    def architecture(names: Iterable[str]) -> str | None:
        """The kind of model that module names show, or None where they could be of several."""

    @staticmethod
    def file_names(modules: Iterable[str], model: Iterable[str] | None = None) -> dict[str, str]:
        """Torch's names of modules to those that kohya's files hold."""

    @staticmethod
    def module_names(modules: Iterable[str]) -> dict[str, str]:
        """Kohya's names, of every kind, to the torch names of the given modules."""


# From module names, torch's or kohya's, to the names of the family that they belong to.
FindNames = Callable[[Iterable[str]], Any]


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank updates of a UNet's Dense layers.

    Attributes:
      tree: the module paths of the parameter tree, each with float32 ``lora_A`` [in r] and ``lora_B`` [r out].
      alpha: the delta of a module is ``lora_A @ lora_B * alpha / rank``.
      rank: r, the same for all modules.

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
        """Torch's module names to (lora_A [in r], lora_B [r out]), sorted."""
        flat = flatten(self.tree)
        paths = sorted({path.rpartition("/")[0] for path in flat})
        halves = [{f"{path}/lora_A", f"{path}/lora_B"} for path in paths]
        if not paths or set().union(*halves) != flat.keys():
            raise ValueError("every module of a LoRA tree has lora_A and lora_B, and nothing else")
        return {module_name(path.split("/")): (flat[f"{path}/lora_A"], flat[f"{path}/lora_B"]) for path in paths}


@dataclasses.dataclass
class _Module:
    """What a file says about one module, in torch's layout."""

    down: np.ndarray | None = None  # [r in]
    up: np.ndarray | None = None  # [out r]
    alpha: float | None = None  # None where the file is silent: the scale is 1

    def put(self, half: str, array: np.ndarray) -> bool:
        """Stores a half, unless it is there already."""
        fresh = getattr(self, half) is None
        setattr(self, half, array)
        return fresh

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
      module_shapes: the tree of the model that the LoRA belongs to: its parameters' shapes (every Dense layer is a
        target) or those of its LoRA collection (only these are). Needed for kohya files, whose names cannot be
        understood without; with it targets and shapes are checked.
      find_names: the names of the family that modules belong to.

    Returns:
      One alpha for all modules: modules that differ in scale have it folded into lora_B (alpha = rank then), modules
      of a smaller rank are filled up with zeros.

    Raises:
      UserError: no LoRA file, a LoRA of SDXL for SD 1.x or 2.x or the reverse, text-encoder parts, convolutions,
        modules that the model has not, halves without their partner, shapes that do not fit.
    """
    path = _lora_file(Path(path))
    state, metadata = store.read_file(path), store.read_metadata(path)
    targets = None if module_shapes is None else _targets(module_shapes)
    if any(key.startswith("lora_") for key in state):
        if targets is None:
            raise UserError(f"{path} has kohya's names, which only make sense beside a model: name the model as well")
        modules, strangers = _collect_kohya(state, find_names(targets).module_names(targets))
    else:
        modules, strangers = _collect_diffusers(state)
        _read_alphas(modules, metadata, path)
    _check_targets(path, modules, strangers, targets, find_names)
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
    """Writes a LoRA that ``pipe.load_lora_weights`` reads with the right scale, alpha included.

    Args:
      path: the file to write; diffusers looks for ``pytorch_lora_weights.safetensors`` when given a folder.
      lora: the updates, written in float32.
      format: ``diffusers``, or ``kohya`` for the web UIs (of SDXL with SGM's block names).
      metadata: more text for the header.
      module_shapes: the tree of the LoRA's model, as in `read_lora`. Kohya's format counts SDXL's blocks in it; a LoRA
        on all attentions shows them by itself.
      find_names: the names of the family that modules belong to.

    Raises:
      UserError: the file cannot be written.
      ValueError: another format.
    """
    if format not in ("diffusers", "kohya"):
        raise ValueError(f"format {format!r}: expected diffusers or kohya")
    state: dict[str, np.ndarray] = {}
    if format == "kohya":
        model = None if module_shapes is None else _targets(module_shapes)
        flat_names = find_names(lora.modules()).file_names(lora.modules(), model)
    for name, (lora_a, lora_b) in lora.modules().items():
        down, up = np.asarray(lora_a, np.float32).T, np.asarray(lora_b, np.float32).T
        if format == "kohya":
            flat = flat_names[name]
            state |= {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
            state[f"{flat}.alpha"] = np.float32(lora.alpha)
        else:
            state |= {f"unet.{name}.lora.down.weight": down, f"unet.{name}.lora.up.weight": up}
    header = dict(metadata or {})
    if format == "diffusers":
        header[METADATA_KEY] = _adapter_metadata(lora)
    store.write_state(path, state, header)


def _adapter_metadata(lora: LoRA) -> str:
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    config = {"r": lora.rank, "lora_alpha": alpha, "peft_type": "LORA", "target_modules": list(lora.modules())}
    return json.dumps({f"unet.{key}": value for key, value in config.items()}, sort_keys=True)


def _lora_file(path: Path) -> Path:
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
    """Torch's module names to (in, out); None for a module that has a weight but is no Dense layer."""
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
    modules: dict[str, _Module] = {}
    strangers = []
    for key, array in state.items():
        match = _DIFFUSERS_KEY.fullmatch(key)
        if match is None:
            strangers.append(key)
            continue
        module = modules.setdefault(match["module"].removeprefix("unet."), _Module())
        half = match["half"] or {"A": "down", "B": "up"}[match["peft"]]
        if not module.put(half, array):
            strangers.append(f"{key} (a second {half})")
    return modules, strangers


def _collect_kohya(
    state: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> tuple[dict[str, _Module], list[str]]:  # fmt: skip
    modules: dict[str, _Module] = {}
    alphas: dict[str, float] = {}
    strangers = []
    for key, array in state.items():
        match = _KOHYA_KEY.fullmatch(key)
        if match is None:
            strangers.append(key)
            continue
        # A name that the model has not stays as it is, to be listed among the unknown targets.
        name = names.get(match["module"], match["module"])
        if match["alpha"]:
            alphas[name] = float(array)
        elif not modules.setdefault(name, _Module()).put(match["half"], array):
            strangers.append(f"{key} (a second {match['half']})")
    for name, alpha in alphas.items():
        if name in modules:
            modules[name].alpha = alpha
        else:
            strangers.append(f"{name}.alpha")
    return modules, strangers


def _read_alphas(modules: Mapping[str, _Module], metadata: Mapping[str, str], path: Path) -> None:
    """The alpha of every module, from the adapter's config: in the header of the file, or beside it as PEFT does."""
    beside = path.parent / "adapter_config.json"
    try:
        if METADATA_KEY in metadata:
            config = json.loads(metadata[METADATA_KEY])
        else:
            config = read_json(beside) if beside.is_file() else {}
        # Keys of a pipeline's file start with the component; those of a single model's file do not.
        config = {key.removeprefix("unet."): value for key, value in config.items()}
        if config.get("use_dora"):
            raise UserError(f"{path} is a DoRA, which is not supported")
        for name, module in modules.items():
            alpha = _pattern_value(config.get("alpha_pattern") or {}, name, config.get("lora_alpha"))
            if alpha is not None and module.down is not None:
                # Rank-stabilised LoRA divides by the root of the rank; alpha takes up the difference.
                module.alpha = float(alpha) * (math.sqrt(module.rank) if config.get("use_rslora") else 1.0)
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise UserError(f"{path}: cannot understand the adapter's config ({METADATA_KEY}): {error}") from error


def _pattern_value(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    # As peft.utils.get_pattern_key: the pattern is the end of the name, at a dot.
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _check_targets(
    path: Path,
    modules: Mapping[str, _Module],
    strangers: list[str],
    targets: Mapping[str, Any] | None,
    find_names: FindNames,
) -> None:
    if not modules:
        raise UserError(f"{path} is not a LoRA file: none of its {len(strangers)} tensors is half of a LoRA layer")
    problems: dict[str, list[str]] = {
        "parts of a text encoder": [],
        "convolutions": [],
        "modules that this model has not (or not as LoRA targets)": [],
        "halves without their partner": [],
        "of another shape": [],
        "tensors that are no LoRA weights": [],
    }
    for key in strangers:
        text = key.startswith(_TEXT_ENCODERS)
        problems["parts of a text encoder" if text else "tensors that are no LoRA weights"].append(key)
    _check_architecture(path, [*modules, *strangers], targets, find_names)
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
    family = find_names(targets or names)
    theirs = family.architecture(names)
    ours = family.architecture(targets or ())
    if theirs and ours and theirs != ours:
        raise UserError(f"{path} is a LoRA of {theirs}, and this model is {ours}: choose a LoRA of the same kind")


def _problem(name: str, module: _Module, targets: Mapping[str, Any] | None) -> str | None:
    if name.startswith(_TEXT_ENCODERS):
        return "parts of a text encoder"
    if any(half is not None and half.ndim != 2 for half in (module.down, module.up)):
        return "convolutions"
    if targets is not None and name not in targets:
        return "modules that this model has not (or not as LoRA targets)"
    if targets is not None and targets[name] is None:
        return "convolutions"
    if module.down is None or module.up is None:
        return "halves without their partner"
    expected = (module.down.shape[1], module.up.shape[0]) if targets is None else targets[name]
    fits = (module.down.shape[1], module.up.shape[0]) == expected and module.down.shape[0] == module.up.shape[1]
    return None if fits else "of another shape"


def _unify(modules: Mapping[str, _Module]) -> LoRA:
    """One rank and one alpha for all modules, without changing any delta."""
    rank = max(module.rank for module in modules.values())
    scales = {module.scale for module in modules.values()}
    alphas = {module.alpha for module in modules.values()}
    fold = len(scales) > 1
    if fold or alphas == {None}:
        alpha = float(rank)
    else:  # the alpha itself where there is one: alpha / rank * rank would round
        alpha = alphas.pop() if len(alphas) == 1 else scales.pop() * rank
    flat: dict[str, np.ndarray] = {}
    for name, module in modules.items():
        lora_a, lora_b = module.down.T.astype(np.float32), module.up.T.astype(np.float32)
        if fold:
            lora_b = lora_b * np.float32(module.scale)
        missing = rank - module.rank
        path = "/".join(module_path(name))
        flat[f"{path}/lora_A"] = np.ascontiguousarray(np.pad(lora_a, ((0, 0), (0, missing))))
        flat[f"{path}/lora_B"] = np.ascontiguousarray(np.pad(lora_b, ((0, missing), (0, 0))))
    return LoRA(unflatten(flat), alpha, rank)

"""What is refused in a LoRA file, and what files are that hold no LoRA."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.weights import kinds
from spo_jax.weights.lora.adapter import LoRA
from spo_jax.weights.lora.layouts import Module
from spo_jax.weights.lora.names import FindNames
from spo_jax.weights.lora.targets import Targets
from spo_jax.weights.messages import shorten
from spo_jax.weights.rules import is_float

_TEXT_ENCODERS = ("text_encoder", "lora_te")

# Parts of a file that cannot be used, as messages call them.
_TEXT_PARTS = "parts of a text encoder"
_CONVOLUTIONS = "convolutions"
_NO_TARGETS = "modules this model does not have (or not as LoRA targets)"
_HALVES = "halves without their partner"
_SHAPES = "halves of different ranks"
_OTHER_TENSORS = "tensors that are not LoRA weights"

# What is said of files that are often mistaken for a LoRA.
_KINDS = {
    kinds.CHECKPOINT: "is a whole model in one file, not a LoRA: name it with --model",
    kinds.NETWORK: "holds the weights of a whole UNet, not a LoRA: name its pipeline's folder with --model",
    kinds.AUTOENCODER: "holds the weights of an autoencoder, not a LoRA: name it with --vae",
    kinds.CLIP: "holds the weights of a CLIP, such as a preference model or a text encoder, not a LoRA",
    kinds.SPM: "holds the weights of a preference model, not a LoRA",
    kinds.LOHA: "is a LoHa, which is not supported: only LoRA is",
    kinds.LOKR: "is a LoKr, which is not supported: only LoRA is",
}


def check_modules(
    path: Path,
    modules: Mapping[str, Module],
    unknown: list[str],
    targets: Targets | None,
    find_names: FindNames,
) -> None:
    """Refuses a file with anything other than pairs of usable halves on the model's linear layers.

    Args:
      path: the file, for messages.
      modules: its modules.
      unknown: its other keys.
      targets: the model's modules; None leaves names and shapes unchecked.
      find_names: finds the names of the family that has the modules.

    Raises:
      UserError: the file is no LoRA or one of another kind of model; or some of it cannot be used, which is listed; or
        a tensor does not hold finite floating-point numbers of a rank of at least 1.
    """
    if not modules:
        raise UserError(f"{path} {_kind(unknown)}")
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
    _check_widths(path, modules, targets)
    for name, module in modules.items():
        problem = _problem(name, module, targets)
        if problem is not None:
            problems[problem].append(name)
    found = [f"{len(names)} {problem}: {shorten(names)}" for problem, names in problems.items() if names]
    if found:
        raise UserError(f"{path}: only LoRA on linear layers of the UNet can be used; found {'; '.join(found)}")
    for module in modules.values():
        _check_values(path, module)


def check_finite(lora: LoRA, source: str) -> None:
    """Refuses a LoRA of a checkpoint whose training has diverged.

    Raises:
      UserError: a value is not finite.
    """
    for name, halves in lora.modules().items():
        if not all(np.isfinite(half).all() for half in halves):
            raise UserError(
                f"{source}: the LoRA of {name} holds values that are not finite, because training diverged; export an "
                "earlier checkpoint (RUN/checkpoints/STEP)"
            )


def _kind(keys: Iterable[str]) -> str:
    """Says what a file is that holds no half of a LoRA layer."""
    keys = list(keys)
    unknown = f"is not a LoRA file: none of its {len(keys)} tensors is half of a LoRA layer"
    return _KINDS.get(kinds.of_keys(keys), unknown)


def _check_architecture(path: Path, names: list[str], targets: Targets | None, find_names: FindNames) -> None:
    """Refuses a LoRA whose names are those of another kind of model."""
    family = find_names(targets or names)
    theirs = family.architecture(names)
    ours = family.architecture(targets or ())
    if theirs and ours and theirs != ours:
        raise UserError(f"{path} is a LoRA of {theirs}, and this model is {ours}: choose a LoRA of the same kind")


def _check_widths(path: Path, modules: Mapping[str, Module], targets: Targets | None) -> None:
    """Refuses a LoRA of layers that this model has in other widths, as a larger model of the same kind has them."""
    for name, module in modules.items():
        expected = targets and targets.get(name)
        if not expected or any(half is None or half.ndim != 2 for half in (module.down, module.up)):
            continue
        for width, here in zip((module.down.shape[1], module.up.shape[0]), expected, strict=True):
            if width != here:
                raise UserError(f"{path} was made for another model: {name} has width {width} there, and {here} here")


def _problem(name: str, module: Module, targets: Targets | None) -> str | None:
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
    return None if module.down.shape[0] == module.up.shape[1] else _SHAPES


def _check_values(path: Path, module: Module) -> None:
    for half in ("down", "up"):
        key = module.keys[half]
        array = getattr(module, half)
        if not is_float(array.dtype):
            raise UserError(f"{path}: {key} has the type {array.dtype}, expected floating-point weights")
        if array.size == 0:
            raise UserError(f"{path}: {key} has shape {list(array.shape)}, expected a rank of 1 or more")
        with np.errstate(over="ignore"):  # float64 may be beyond float32
            finite = np.isfinite(np.asarray(array, np.float32)).all()
        if not finite:
            raise UserError(f"{path}: {key} holds values that are not finite: train it again, or get the file again")
    with np.errstate(over="ignore", invalid="ignore"):
        strongest = np.abs(np.asarray(module.up, np.float32)).max() * np.float32(module.scale)
    if not np.isfinite(strongest):
        raise UserError(f"{path}: alpha of {module.keys['up']} is {module.alpha}: with it, weights are beyond float32")

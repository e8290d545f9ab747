"""Reads LoRA files of all layouts."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.trees import unflatten
from spo_jax.weights import store
from spo_jax.weights.lora.adapter import LoRA
from spo_jax.weights.lora.alphas import read_alphas
from spo_jax.weights.lora.checks import check_modules
from spo_jax.weights.lora.find import find_lora
from spo_jax.weights.lora.layouts import Module, collect_diffusers, collect_kohya, is_kohya
from spo_jax.weights.lora.names import FindNames
from spo_jax.weights.lora.targets import targets_of
from spo_jax.weights.rules import module_path

_MAX_RANK = 4096  # as `LoRASettings.rank`
# Padding may make a file this many times as large. Programs that choose a rank for each module write ranks from 1 to
# some hundreds, with a mean of at least a tenth of the largest.
_MAX_PADDING = 64


def read_lora(path: str | os.PathLike, module_shapes: Mapping[str, Any] | None, find_names: FindNames) -> LoRA:
    """Reads a LoRA of a diffusion network, in diffusers', PEFT's or kohya's layout.

    Args:
      path: file, folder, run or hub id, as `spo_jax.weights.lora.find.find_lora` finds them.
      module_shapes: tree of the model that the LoRA belongs to: the shapes of its parameters, all of whose Dense layers
        are targets, or those of its LoRA collection, whose modules alone are targets. Files with kohya's names cannot
        be read without it. If it is given, targets and shapes are checked.
      find_names: finds the names of the family that has the modules.

    Returns:
      The LoRA, with one alpha for all modules. If modules differ in scale, it is folded into lora_B (then alpha is the
      rank); modules of a smaller rank are padded with zeros.

    Raises:
      UserError: as `find_lora`; the file is not a LoRA; the LoRA is of SDXL and the model is SD 1.x or 2.x, or the
        reverse; the file has parts of a text encoder, convolutions, modules this model does not have, halves without
        their partner, or shapes that do not fit; its weights are not finite floating-point numbers; an alpha is not
        finite; or a rank is too large, alone or in comparison with the others.
    """
    path = find_lora(path)
    state = store.read_file(path)
    metadata = store.read_metadata(path)
    targets = None if module_shapes is None else targets_of(module_shapes)
    if is_kohya(state):
        if targets is None:
            raise UserError(f"{path} has kohya's names, which can only be read with a model: name the model as well")
        modules, unknown = collect_kohya(state, find_names(targets).module_names(targets), path)
    else:
        modules, unknown = collect_diffusers(state)
        read_alphas(modules, metadata, path)
    check_modules(path, modules, unknown, targets, find_names)
    _check_rank(path, modules)
    return _unify(modules)


def _check_rank(path: os.PathLike, modules: Mapping[str, Module]) -> None:
    """Refuses ranks with which a small file would take much memory, because all modules get the largest rank."""
    largest = max(modules, key=lambda name: modules[name].rank)
    rank = modules[largest].rank
    if rank > _MAX_RANK:
        raise UserError(f"{path}: {largest} has rank {rank}, expected at most {_MAX_RANK}")
    sizes = {name: module.down.size + module.up.size for name, module in modules.items()}
    padded = sum(rank * size // modules[name].rank for name, size in sizes.items())
    if padded > _MAX_PADDING * sum(sizes.values()):
        raise UserError(
            f"{path}: {largest} has rank {rank}, and the other modules so much less that padding them to it takes over "
            f"{_MAX_PADDING} times the memory of the file: expected ranks of a similar size"
        )


def _unify(modules: Mapping[str, Module]) -> LoRA:
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

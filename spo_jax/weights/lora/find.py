"""Finds LoRA files: a file, a folder that holds one, a run's folder, or a repository on the hub."""

import glob
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from spo_jax.core import run_files
from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path
from spo_jax.weights import hub
from spo_jax.weights.kinds import DIFFUSERS_LORA, LORA_FILES
from spo_jax.weights.messages import shorten
from spo_jax.weights.store import TORCH_SUFFIXES

_CONFIG = "adapter_config.json"  # PEFT's, with alpha
_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
_ON_HUB = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/(?P<inside>[^/].*?)/?)?")


def find_lora(source: str | os.PathLike) -> Path:
    """Returns the local path of a LoRA file.

    Args:
      source: the file; a folder with ``pytorch_lora_weights.safetensors``, with the ``lora.safetensors`` of a run, with
        PEFT's ``adapter_model.safetensors``, or with one safetensors file of another name; or, if there is no such
        path, ``owner/name`` on the hub, or a file or folder in it, of which only the LoRA is fetched.

    Raises:
      UserError: there is no such path, or no single LoRA in it; the folder is a whole model, or a run without LoRA; or
        the repository cannot be fetched, as in `spo_jax.weights.hub.resolve`.
    """
    path = local_path(source)
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        return path
    run, step = run_files.run_of(path)
    if step == run_files.BEST and run_files.holds_run(run):  # the best checkpoint by its name, which is no folder
        raise UserError(_no_lora_in_run(path, run))
    match = _ON_HUB.fullmatch(str(source))
    if match is None or _is_meant_locally(str(source)):
        raise UserError(
            f"no such file or folder: {source} (a LoRA on the hub is owner/name or owner/name/file.safetensors)"
        )
    repo, inside = match["repo"], match["inside"] or ""
    if inside.endswith(_SUFFIXES):
        return hub.resolve(repo, select=lambda names: _named(repo, inside, names), kept=(glob.escape(inside),)) / inside
    folder = f"{inside}/" if inside else ""
    kept = [f"{glob.escape(folder)}{name}" for name in LORA_FILES]
    return _in_folder(hub.resolve(repo, select=lambda names: _chosen(repo, folder, names), kept=kept) / inside)


def _is_meant_locally(source: str) -> bool:
    """Reports whether ``source`` is rather a path with a slip than an id on the hub."""
    owner, _, rest = source.partition("/")
    return Path(owner).is_dir() or ("/" not in rest and rest.endswith(_SUFFIXES))


def _in_folder(folder: Path) -> Path:
    for name in LORA_FILES:
        if (folder / name).is_file():
            return folder / name
    if (folder / "model_index.json").is_file():
        raise UserError(f"{folder} is a whole model (a pipeline's folder), not a LoRA: name it with --model")
    run, _ = run_files.run_of(folder)
    if (run / run_files.CHECKPOINTS).is_dir():
        raise UserError(_no_lora_in_run(folder, run))
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        names = shorten(entry.name for entry in found) or "no safetensors file"
        raise UserError(f"{folder}: expected {DIFFUSERS_LORA}, found {names}; name the LoRA file itself")
    return found[0]


def _no_lora_in_run(folder: Path, run: Path) -> str:
    """Says why a run, or one of its checkpoints, holds no LoRA file, and what to do."""
    spm = run / run_files.SPM
    if spm.is_dir():
        return f"{folder} is of a run that trained a preference model: use it as --config.spm.model={spm}"
    if not run_files.holds_run(run):
        return f"{folder} is a run without a checkpoint; {run_files.LORA} is written with the first one"
    command = f"python -m spo_jax.export --run={shlex.quote(str(folder))} --out=exports/lora.safetensors"
    return f"{folder} has no {run_files.LORA}: write the LoRA of a checkpoint with {command}"


def _named(repo: str, file: str, names: Sequence[str]) -> list[str]:
    """Selects a file of a repository, and the adapter's config beside it."""
    if file not in names:
        raise UserError(f"{repo} on the hub has no {file}: found {shorten(_weights(names)) or 'no weights'}")
    config = "/".join([*file.split("/")[:-1], _CONFIG])
    return [name for name in (file, config) if name in names]


def _chosen(repo: str, folder: str, names: Sequence[str]) -> list[str]:
    """Selects the LoRA of a repository, or of a folder in it, as `_in_folder` does in a folder.

    Args:
      repo: id of the repository.
      folder: the folder, which ends in a slash; empty for the top one.
      names: all files of the repository.
    """
    inside = [name.removeprefix(folder) for name in names if name.startswith(folder)]
    found = [name for name in _weights(inside) if "/" not in name and name.endswith(".safetensors")]
    for name in LORA_FILES:
        if name in found:
            return _named(repo, folder + name, names)
    if "model_index.json" in inside:
        where = f"{repo}/{folder}".rstrip("/")
        raise UserError(f"{where} on the hub is a whole model, not a LoRA: name it with --model")
    if len(found) != 1:
        seen = shorten(_weights(names)) or "no weights"
        where = f" in {folder[:-1]}" if folder else ""
        raise UserError(
            f"{repo} on the hub: expected one LoRA{where}, found {seen}; name its file: {repo}/FILE.safetensors"
        )
    return _named(repo, folder + found[0], names)


def _weights(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.endswith(_SUFFIXES)]

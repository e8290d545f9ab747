"""Where a pipeline's parts are read from: a diffusers folder, a single-file checkpoint, or an autoencoder elsewhere.

All of them answer alike: `config` gives a part's config, `weights` fills its tree. The pipeline that asks does not
know which of them it reads from.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spo_jax import toy
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object
from spo_jax.core.typing import DType, Params
from spo_jax.models.stable_diffusion.single_file import SingleFile, read_single_file
from spo_jax.weights import components as clip_weights
from spo_jax.weights import components as diffusers_weights
from spo_jax.weights import hub, rules

# What is read; no safety checker.
COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler", "tokenizer", "tokenizer_2")
SCHEDULER_FILE = "scheduler_config.json"
# Of the model that a single file was tuned from.
_SMALL_FILES = ("model_index.json", "*/config.json", f"scheduler/{SCHEDULER_FILE}", "tokenizer/*", "tokenizer_2/*")
_CLASSES = {"StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl"}
_LOADERS: dict[str, Callable[..., Params]] = {
    "unet": diffusers_weights.load_unet,
    "vae": diffusers_weights.load_vae,
    "text_encoder": clip_weights.load_text,
    "text_encoder_2": clip_weights.load_text,
}
# Whose tokenizers and scheduler a single file gets when no base is named; a file of SD 2.1 does not tell whether it
# predicts noise or v, so for those a base has to be named.
_DEFAULT_BASES = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """A diffusers folder.

    `config` gives a part's config in its library's form, `where` the file that it stands in, `weights` its weights in
    the tree of ``shapes``, floating-point ones cast to ``dtype``; `scheduler` the scheduler's config.

    Attributes:
      kind: ``sd`` or ``sdxl``. base: whose tokenizers and scheduler go with it: its own.
      zero_unconditional: whether the unconditional input is zeros (`force_zeros_for_empty_prompt`).
    """

    path: Path
    kind: str
    zero_unconditional: bool

    @property
    def base(self) -> Path:
        return self.path

    def where(self, name: str) -> str:
        return str(self.path / name / "config.json")

    def config(self, name: str) -> Mapping[str, Any]:
        return read_json_object(Path(self.where(name)))

    def scheduler(self) -> Mapping[str, Any]:
        return _scheduler(self.path)

    def weights(self, name: str, shapes: Params, dtype: DType) -> Params:
        return _LOADERS[name](self.path / name, shapes, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class FileSource:
    """A single-file checkpoint; else as `FolderSource`.

    Weights show widths and depths. What they do not show (heads, groups, scaling, sizes) is as in ``base``, the model
    that it was tuned from, where that folder holds configs, or as in all published models of the kind.
    """

    path: Path
    file: SingleFile
    base: Path
    zero_unconditional: bool

    @property
    def kind(self) -> str:
        return "sdxl" if self.file.kind == "sdxl" else "sd"

    def where(self, name: str) -> str:
        return f"{self.path}, {name}"

    def config(self, name: str) -> Mapping[str, Any]:
        beside = self.base / name / "config.json"
        lent = read_json_object(beside) if beside.is_file() else {}
        return self.file.configs[name] | lent | self.file.shown[name]

    def scheduler(self) -> Mapping[str, Any]:
        return _scheduler(self.base) | self.file.configs["scheduler"]

    def weights(self, name: str, shapes: Params, dtype: DType) -> Params:
        state = self.file.components[name]
        return rules.to_tree(state, shapes, self.where(name), ignore=clip_weights.IGNORED, dtype=dtype)


def _scheduler(folder: Path) -> dict[str, Any]:
    return read_json_object(folder / "scheduler" / SCHEDULER_FILE)


@dataclasses.dataclass(frozen=True)
class VAESource:
    """A folder with nothing but an autoencoder in it, whatever part it is asked for."""

    path: Path

    def where(self, name: str) -> str:
        return str(self.path / "config.json")

    def config(self, name: str) -> Mapping[str, Any]:
        return read_json_object(Path(self.where(name)))

    def weights(self, name: str, shapes: Params, dtype: DType) -> Params:
        return diffusers_weights.load_vae(self.path, shapes, dtype=dtype)


Source = FolderSource | FileSource | VAESource


def resolve(model: str | os.PathLike, revision: str | None = None) -> Path:
    """Where a model lies: the embedded folder, a folder or file here, or a hub id (downloaded and cached).

    Raises:
      UserError: as `spo_jax.weights.hub.resolve`.
    """
    return toy.ASSETS / "pipeline" if str(model) == toy.NAME else hub.resolve(model, revision, components=COMPONENTS)


def open_source(path: Path, base: str | os.PathLike = "") -> FolderSource | FileSource:
    """The parts of a pipeline.

    Args:
      path: diffusers folder or single-file checkpoint.
      base: folder or hub id that lends a single file its tokenizers and scheduler; by default the published model of
        its architecture.

    Raises:
      UserError: neither a pipeline's folder nor a checkpoint that can be read; a base that does not fit.
    """
    if path.is_file():
        return _open_file(path, base)
    if base:
        raise UserError(f"{path} has its own tokenizer and scheduler: leave base = {str(base)!r} out")
    return FolderSource(path, *_read_index(path))


def _read_index(folder: Path) -> tuple[str, bool]:
    """Kind, and whether the unconditional input is zeros, from ``model_index.json``."""
    file = folder / "model_index.json"
    if not file.is_file():
        raise UserError(f"{folder}: no model_index.json here; expected a diffusers pipeline folder or a hub id of one")
    index = read_json_object(file)
    name = index.get("_class_name")
    if name not in _CLASSES:
        raise UserError(f"{file}: _class_name is {name!r}, expected {' or '.join(map(repr, _CLASSES))}")
    zeros = index.get("force_zeros_for_empty_prompt", True)  # diffusers' default
    if not isinstance(zeros, bool):
        raise UserError(f"{file}: force_zeros_for_empty_prompt = {zeros!r}, expected true or false")
    return _CLASSES[name], zeros and _CLASSES[name] == "sdxl"


def _open_file(path: Path, base: str | os.PathLike) -> FileSource:
    file = read_single_file(path)
    base = base or _DEFAULT_BASES.get(file.kind, "")
    if not base:
        raise UserError(
            f"{path} holds no tokenizer and no scheduler: name as base the {file.kind} model that it was tuned from, a "
            "diffusers folder or hub id"
        )
    folder = toy.ASSETS / "pipeline" if str(base) == toy.NAME else hub.resolve(base, allow_patterns=_SMALL_FILES)
    kind, zeros = _read_index(folder)
    source = FileSource(path, file, folder, zeros)
    lent = folder / "unet" / "config.json"
    width = read_json_object(lent).get("cross_attention_dim") if lent.is_file() else None
    shown = file.shown["unet"]["cross_attention_dim"]
    if kind != source.kind or width not in (None, shown):
        raise UserError(f"base = {str(base)!r} is another kind of model than {path}, an {file.kind} of width {shown}")
    return source


def open_vae(vae: str | os.PathLike) -> VAESource:
    """An autoencoder in a folder or hub repository of its own, or that of a whole pipeline.

    Raises:
      UserError: as `spo_jax.weights.hub.resolve`; a file.
    """
    folder = resolve(toy.NAME) if str(vae) == toy.NAME else hub.resolve(vae, components=("vae",))
    if folder.is_file():
        raise UserError(f"vae = {str(vae)!r} is a file: expected an autoencoder's folder, with config.json, or hub id")
    return VAESource(folder if (folder / "config.json").is_file() else folder / "vae")

"""Where a pipeline's parts are read from: a diffusers folder, a single-file checkpoint, or an autoencoder elsewhere.

All of them answer alike: `config` gives a part's config, `weights` fills its tree. The pipeline that asks does not
know which of them it reads from.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spo_jax import toy
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object
from spo_jax.core.typing import DType, Params
from spo_jax.models.stable_diffusion import presets
from spo_jax.models.stable_diffusion.single_file import SingleFile, read_single_file
from spo_jax.weights import components, hub, rules

# The subfolders that are read; no safety checker.
COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler", "tokenizer", "tokenizer_2")
SCHEDULER_FILE = "scheduler_config.json"
CLASSES = {"StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl"}
# What is fetched of the model that a single file was tuned from.
_SMALL_FILES = ("model_index.json", "*/config.json", f"scheduler/{SCHEDULER_FILE}", "tokenizer/*", "tokenizer_2/*")
_LOADERS: dict[str, Callable[..., Params]] = {
    "unet": components.load_unet,
    "vae": components.load_vae,
    "text_encoder": components.load_text,
    "text_encoder_2": components.load_text,
}
# Whose tokenizers and scheduler a single file gets when no base is named; a file of SD 2.1 does not show whether it
# predicts noise or v, so for those a base has to be named.
_DEFAULT_BASES = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
# Hub ids whose configs are known, so that programs can be compiled for them with nothing at hand.
_PUBLISHED = (
    (re.compile(r"/stable-diffusion-v1-[1-5]$"), "sd", presets.SD15),
    (re.compile(r"/stable-diffusion-xl-base-1\.0$"), "sdxl", presets.SDXL),
)
_PUBLISHED_VAES = ((re.compile(r"/sdxl-vae-fp16-fix$"), presets.SDXL_VAE | {"force_upcast": False}),)


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """A diffusers folder.

    `config` gives a part's config in its library's form, `where` the file that it stands in, `weights` its weights in
    the tree of ``shapes``, floating-point ones cast to ``dtype``; `scheduler` the scheduler's config.

    Attributes:
      path: the folder.
      kind: ``sd`` or ``sdxl``.
      zero_unconditional: whether the unconditional input is zeros (`force_zeros_for_empty_prompt`).
    """

    path: Path
    kind: str
    zero_unconditional: bool

    @property
    def base(self) -> Path:
        """Whose tokenizers and scheduler go with it: its own."""
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
    """A single-file checkpoint; otherwise as `FolderSource`.

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
        return rules.to_tree(state, shapes, self.where(name), ignore=components.IGNORED, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class PublishedSource:
    """A published model of which only the configs are known; otherwise as `FolderSource`, without weights."""

    name: str
    kind: str
    configs: Mapping[str, Mapping[str, Any]]

    @property
    def path(self) -> Path:
        return Path(self.name)

    @property
    def base(self) -> Path:
        return self.path

    @property
    def zero_unconditional(self) -> bool:
        return self.kind == "sdxl"

    def where(self, name: str) -> str:
        return f"{self.name}, {name}"

    def config(self, name: str) -> Mapping[str, Any]:
        return self.configs[name]

    def scheduler(self) -> Mapping[str, Any]:
        return self.configs["scheduler"]


def _scheduler(folder: Path) -> dict[str, Any]:
    return read_json_object(folder / "scheduler" / SCHEDULER_FILE)


@dataclasses.dataclass(frozen=True)
class VAESource:
    """A folder that holds only an autoencoder, whichever part is asked for."""

    path: Path

    def where(self, name: str) -> str:
        return str(self.path / "config.json")

    def config(self, name: str) -> Mapping[str, Any]:
        return read_json_object(Path(self.where(name)))

    def weights(self, name: str, shapes: Params, dtype: DType) -> Params:
        return components.load_vae(self.path, shapes, dtype=dtype)


Source = FolderSource | FileSource | PublishedSource
PartSource = Source | VAESource


def open_source(path: Path, base: str | os.PathLike = "") -> FolderSource | FileSource:
    """Opens the parts of a pipeline.

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
        raise UserError(f"{path} has its own tokenizer and scheduler: remove base = {str(base)!r}")
    return FolderSource(path, *_read_index(path))


def published_source(name: str) -> PublishedSource | None:
    """The configs of a hub id, where they are known."""
    for pattern, kind, configs in _PUBLISHED:
        if pattern.search(name):
            return PublishedSource(name, kind, configs)
    return None


def _read_index(folder: Path) -> tuple[str, bool]:
    """Kind, and whether the unconditional input is zeros, from ``model_index.json``."""
    file = folder / "model_index.json"
    if not file.is_file():
        raise UserError(f"{folder}: no model_index.json here; expected a diffusers pipeline folder or a hub id of one")
    index = read_json_object(file)
    name = index.get("_class_name")
    if name not in CLASSES:
        raise UserError(f"{file}: _class_name is {name!r}, expected {' or '.join(map(repr, CLASSES))}")
    zeros = index.get("force_zeros_for_empty_prompt", True)  # diffusers' default
    if not isinstance(zeros, bool):
        raise UserError(f"{file}: force_zeros_for_empty_prompt = {zeros!r}, expected true or false")
    return CLASSES[name], zeros and CLASSES[name] == "sdxl"


def _open_file(path: Path, base: str | os.PathLike) -> FileSource:
    file = read_single_file(path)
    base = base or _DEFAULT_BASES.get(file.kind, "")
    if not base:
        raise UserError(
            f"{path} holds neither tokenizer nor scheduler: set base to the {file.kind} model that it was tuned from, "
            "a diffusers folder or hub id"
        )
    is_toy = str(base) == toy.NAME
    folder = toy.ASSETS / "pipeline" if is_toy else hub.resolve(base, allow_patterns=_SMALL_FILES)
    kind, zeros = _read_index(folder)
    source = FileSource(path, file, folder, zeros)
    lent = folder / "unet" / "config.json"
    width = read_json_object(lent).get("cross_attention_dim") if lent.is_file() else None
    shown = file.shown["unet"]["cross_attention_dim"]
    if kind != source.kind or width not in (None, shown):
        raise UserError(f"base = {str(base)!r} is another kind of model than {path}, an {file.kind} of width {shown}")
    return source


def open_vae(vae: str | os.PathLike) -> VAESource:
    """Opens an autoencoder in a folder or hub repository of its own, or that of a whole pipeline.

    Raises:
      UserError: as `spo_jax.weights.hub.resolve`; a file.
    """
    folder = toy.ASSETS / "pipeline" if str(vae) == toy.NAME else hub.resolve(vae, components=("vae",))
    if folder.is_file():
        raise UserError(f"vae = {str(vae)!r} is a file: expected an autoencoder's folder, with config.json, or hub id")
    return VAESource(folder if (folder / "config.json").is_file() else folder / "vae")


def published_vae(vae: str) -> PublishedSource | None:
    """The config of an autoencoder's hub id, where it is known."""
    for pattern, config in _PUBLISHED_VAES:
        if pattern.search(vae):
            return PublishedSource(vae, "vae", {"vae": config})
    return None

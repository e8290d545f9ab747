"""Sources of a pipeline's parts: a diffusers folder, a single-file checkpoint, or a published model's configs.

All sources have the same methods: `config` returns a part's config and `weights` fills its tree, so that the pipeline
does not depend on the kind of source. A part that comes from elsewhere has a source of its own
(`spo_jax.models.stable_diffusion.parts`).
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
from spo_jax.models.stable_diffusion import architecture, presets
from spo_jax.models.stable_diffusion.single_file import SingleFile, read_single_file
from spo_jax.weights import components, hub, rules, store

# The subfolders that are read. The safety checker is not one of them.
COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler", "tokenizer", "tokenizer_2")
SCHEDULER_FILE = "scheduler_config.json"
CLASSES = {"StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl"}
# The files that are downloaded of a single file's base model.
_SMALL_FILES = ("model_index.json", "*/config.json", f"scheduler/{SCHEDULER_FILE}", "tokenizer/*", "tokenizer_2/*")
LOADERS: dict[str, Callable[..., Params]] = {
    "unet": components.load_unet,
    "vae": components.load_vae,
    "text_encoder": components.load_text,
    "text_encoder_2": components.load_text,
}
# The models whose tokenizers and scheduler a single file uses if no base is given. A file of SD 2.1 does not show
# whether it predicts noise or v, so it needs a base.
_DEFAULT_BASES = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
# Hub ids whose configs are known, so that programs can be compiled for them without any file.
_PUBLISHED = (
    (re.compile(r"/stable-diffusion-v1-[1-5]$"), "sd", presets.SD15),
    (re.compile(r"/stable-diffusion-xl-base-1\.0$"), "sdxl", presets.SDXL),
)
TOY = toy.ASSETS / "pipeline"
# A weight of a single file whose shape is [d l], where l is the width of the text states.
_TEXT_KEY = re.compile(rf"{re.escape(architecture.UNET)}.*\.attn2\.to_k\.weight$")


def claims(path: Path) -> bool:
    """Reports whether a path belongs to this family: a diffusers folder of its classes, or a single-file checkpoint."""
    if path.is_file():
        return True
    index = path / "model_index.json"
    return index.is_file() and read_json_object(index).get("_class_name") in CLASSES


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """A diffusers folder.

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
        """The folder with the tokenizers and the scheduler, which is the pipeline's own."""
        return self.path

    def where(self, name: str) -> str:
        """Returns the file that holds a part's config, for error messages."""
        return str(self.path / name / "config.json")

    def config(self, name: str) -> Mapping[str, Any]:
        """Reads a part's config in its library's form."""
        return read_json_object(Path(self.where(name)))

    def scheduler(self) -> Mapping[str, Any]:
        """Reads the scheduler's config."""
        return _scheduler(self.path)

    def weights(self, name: str, shapes: Params, dtype: DType) -> Params:
        """Reads a part's weights into the tree of ``shapes``; floating-point ones are cast to ``dtype``."""
        return LOADERS[name](self.path / name, shapes, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class FileSource:
    """A single-file checkpoint; its methods are those of `FolderSource`.

    The weights show widths and depths. The values that they do not show (heads, groups, scaling, sizes) are those of
    the base model if its folder has configs, and otherwise those of all published models of the kind.

    Attributes:
      path: the file.
      file: its content.
      base: folder of the model that was fine-tuned, with the tokenizers and the scheduler.
      zero_unconditional: as in `FolderSource`.
    """

    path: Path
    file: SingleFile
    base: Path
    zero_unconditional: bool

    @property
    def kind(self) -> str:
        """The kind of model, ``sd`` or ``sdxl``."""
        return _kind_of(self.file.kind)

    def where(self, name: str) -> str:
        """Returns where a part's config is from, for error messages."""
        return f"{self.path}, {name}"

    def config(self, name: str) -> Mapping[str, Any]:
        """Returns a part's config in its library's form."""
        file = self.base / name / "config.json"
        base_config = read_json_object(file) if file.is_file() else {}
        return self.file.configs[name] | base_config | self.file.shown[name]

    def scheduler(self) -> Mapping[str, Any]:
        """Returns the scheduler's config."""
        return _scheduler(self.base) | self.file.configs["scheduler"]

    def weights(self, name: str, shapes: Params, dtype: DType) -> Params:
        """Reads a part's weights into the tree of ``shapes``; floating-point ones are cast to ``dtype``."""
        state = self.file.components[name]
        return rules.to_tree(state, shapes, self.where(name), ignore=components.IGNORED, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class PublishedSource:
    """A published model of which only the configs are known; its methods are those of `FolderSource` except `weights`.

    Attributes:
      name: hub id.
      kind: ``sd`` or ``sdxl``; ``vae`` for an autoencoder.
      configs: config of each component by name.
    """

    name: str
    kind: str
    configs: Mapping[str, Mapping[str, Any]]

    @property
    def path(self) -> Path:
        """The hub id as a path."""
        return Path(self.name)

    @property
    def base(self) -> Path:
        """The hub id as a path, because tokenizers and scheduler are the model's own."""
        return self.path

    @property
    def zero_unconditional(self) -> bool:
        """Whether the unconditional input is zeros."""
        return self.kind == "sdxl"

    def where(self, name: str) -> str:
        """Returns where a part's config is from, for error messages."""
        return f"{self.name}, {name}"

    def config(self, name: str) -> Mapping[str, Any]:
        """Returns a part's config in its library's form."""
        return self.configs[name]

    def scheduler(self) -> Mapping[str, Any]:
        """Returns the scheduler's config."""
        return self.configs["scheduler"]


def _scheduler(folder: Path) -> dict[str, Any]:
    return read_json_object(folder / "scheduler" / SCHEDULER_FILE)


Source = FolderSource | FileSource | PublishedSource


def open_source(path: Path, base: str | os.PathLike = "") -> FolderSource | FileSource:
    """Opens the parts of a pipeline.

    Args:
      path: diffusers folder or single-file checkpoint.
      base: folder or hub id whose tokenizers and scheduler a single file uses; by default the published model of its
        architecture.

    Raises:
      UserError: the path is neither a pipeline's folder nor a readable checkpoint, or the base does not fit.
    """
    if path.is_file():
        return _open_file(path, base)
    if base:
        raise UserError(f"{path} has its own tokenizer and scheduler: remove base = {str(base)!r}")
    kind, zero_unconditional = _read_index(path)
    return FolderSource(path, kind, zero_unconditional)


def check_source(path: Path, base: str = "") -> None:
    """Refuses what `open_source` would refuse, as far as that shows without reading weights or fetching anything.

    Args:
      path: diffusers folder or single-file checkpoint.
      base: as in `open_source`; only a local one is checked.

    Raises:
      UserError: as `open_source`.
    """
    if path.is_dir():
        open_source(path, base)
        return
    store.check_suffix(path)
    if path.suffix == ".safetensors":
        shapes = store.read_shapes(path)
        kind = architecture.detect(path, shapes)
        width = next((x.shape[1] for key, x in shapes.items() if _TEXT_KEY.match(key) and x.ndim == 2), 0)
        base = base or _default_base(path, kind, width)
        folder = TOY if base == toy.NAME else hub.local(base)
        if folder is not None:
            _check_base(path, kind, width, base, folder)


def kind_and_channels(model: str, path: Path | None) -> tuple[str, int]:
    """Returns kind and channels of a model's latents, where its configs are here or known; otherwise ("", 0).

    Args:
      model: what the user named.
      path: its folder or file; None if it is on the hub.

    Raises:
      UserError: a config is missing or damaged.
    """
    source = published_source(model) if path is None else FolderSource(path, *_read_index(path))
    if source is None:
        return "", 0
    channels = source.config("unet").get("in_channels")
    return source.kind, channels if isinstance(channels, int) else 0


def published_source(name: str) -> PublishedSource | None:
    """Returns the source of a hub id whose configs are known, or None."""
    for pattern, kind, configs in _PUBLISHED:
        if pattern.search(name):
            return PublishedSource(name, kind, configs)
    return None


def _read_index(folder: Path) -> tuple[str, bool]:
    """Returns the kind of a pipeline and whether its unconditional input is zeros, from ``model_index.json``."""
    file = folder / "model_index.json"
    if not file.is_file():
        raise UserError(
            f"{folder}: no model_index.json here; expected a diffusers pipeline folder or the hub id of one"
        )
    index = read_json_object(file)
    name = index.get("_class_name")
    if name not in CLASSES:
        raise UserError(f"{file}: _class_name is {name!r}, expected {' or '.join(map(repr, CLASSES))}")
    zeros = index.get("force_zeros_for_empty_prompt", True)  # diffusers' default
    if not isinstance(zeros, bool):
        raise UserError(f"{file}: force_zeros_for_empty_prompt = {zeros!r}, expected true or false")
    kind = CLASSES[name]
    return kind, zeros and kind == "sdxl"


def _open_file(path: Path, base: str | os.PathLike) -> FileSource:
    """Opens a single file and checks that its base is a model of the same kind."""
    file = read_single_file(path)
    width = file.shown["unet"]["cross_attention_dim"]
    base = base or _default_base(path, file.kind, width)
    folder = TOY if str(base) == toy.NAME else hub.resolve(base, allow_patterns=_SMALL_FILES)
    return FileSource(path, file, folder, _check_base(path, file.kind, width, base, folder))


def _default_base(path: Path, kind: architecture.Kind, width: int) -> str:
    """Returns the published model of a file's architecture.

    Args:
      path: the file.
      kind: its architecture.
      width: width of the text states that its UNet takes; 0 if the weight that shows it is missing.

    Raises:
      UserError: there is none that the file can be a fine-tune of.
    """
    base = _DEFAULT_BASES.get(kind, "")
    known = _width_of(published_source(base).config("unet")) if base else None
    if base and width in (0, known):
        return base
    reason = f", and is no fine-tune of {base}: its text states are {width} wide instead of {known}" if base else ""
    is_toy = width == _width_of(read_json_object(TOY / "unet" / "config.json"))
    raise UserError(
        f"{path} has neither a tokenizer nor a scheduler{reason}: set base to the folder or hub id of the {kind} model "
        f"that was fine-tuned{', or to toy if it was that' if is_toy else ''}"
    )


def _check_base(path: Path, kind: architecture.Kind, width: int, base: str | os.PathLike, folder: Path) -> bool:
    """Checks that a file's base is a model of the same kind; returns whether its unconditional input is zeros."""
    base_kind, zero_unconditional = _read_index(folder)
    config = folder / "unet" / "config.json"
    base_width = _width_of(read_json_object(config)) if config.is_file() else None
    if base_kind != _kind_of(kind) or base_width not in (None, width):
        raise UserError(f"base = {str(base)!r} is another kind of model than {path}, an {kind} of width {width}")
    return zero_unconditional


def _kind_of(kind: architecture.Kind) -> str:
    return "sdxl" if kind == "sdxl" else "sd"


def _width_of(unet: Mapping[str, Any]) -> Any:
    return unet.get("cross_attention_dim")

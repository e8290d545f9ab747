"""Parts of a pipeline that come from elsewhere: an autoencoder, or the UNet alone that an author has published.

Most models that were trained on preferences are published as a UNet without the rest of their pipeline: its files are
at the top of a repository, in its folder ``unet``, or in a folder further down. No jax is imported here.
"""

import dataclasses
import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spo_jax import toy
from spo_jax.core.errors import UserError
from spo_jax.core.files import local_path, read_json_object
from spo_jax.core.typing import DType, Params
from spo_jax.models.stable_diffusion import presets
from spo_jax.models.stable_diffusion.sources import LOADERS, TOY, PublishedSource
from spo_jax.weights import hub
from spo_jax.weights.kinds import describe

_CLASSES = {"unet": "UNet2DConditionModel", "vae": "Autoencoder"}  # beginnings of `_class_name`
_WORDS = {"unet": "a UNet", "vae": "an autoencoder"}
_IN_REPOSITORY = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/(?P<folder>\w[\w./-]*?)/?")
_PUBLISHED_VAES = ((re.compile(r"/sdxl-vae-fp16-fix$"), presets.SDXL_VAE | {"force_upcast": False}),)


@dataclasses.dataclass(frozen=True)
class PartSource:
    """A folder that holds only one part; its methods are those of `FolderSource` for every name of a part.

    Attributes:
      path: the folder, with the part's config and weights.
      part: ``unet`` or ``vae``.
    """

    path: Path
    part: str

    def where(self, name: str) -> str:
        """Returns the file that holds the part's config, for error messages."""
        return str(self.path / "config.json")

    def config(self, name: str) -> Mapping[str, Any]:
        """Reads the part's config in its library's form."""
        return read_json_object(Path(self.where(name)))

    def weights(self, name: str, shapes: Params, dtype: DType) -> Params:
        """Reads the part's weights into the tree of ``shapes``; floating-point ones are cast to ``dtype``."""
        return LOADERS[self.part](self.path, shapes, dtype=dtype)


def open_vae(vae: str | os.PathLike) -> PartSource:
    """Opens an autoencoder in a folder or hub repository of its own, or the one of a whole pipeline.

    Raises:
      UserError: as `spo_jax.weights.hub.resolve`; or there is no autoencoder.
    """
    return _open("vae", vae)


def open_unet(unet: str | os.PathLike) -> PartSource:
    """Opens a UNet in a folder or hub repository of its own, or the one of a whole pipeline.

    Args:
      unet: folder with the UNet's ``config.json`` or with a folder ``unet``; ``toy``; or ``OWNER/NAME`` or
        ``OWNER/NAME/FOLDER`` on the hub, of which only the UNet is fetched.

    Raises:
      UserError: as `spo_jax.weights.hub.resolve`; or there is no UNet.
    """
    return _open("unet", unet)


def is_unet_alone(source: str) -> bool:
    """Reports whether a source is a UNet without the rest of a pipeline.

    Args:
      source: as in `open_unet`, or a whole pipeline or file. Of what is on the hub, only its configs are fetched.

    Raises:
      UserError: as `spo_jax.weights.hub.resolve`.
    """
    path = local_part(source)
    if path is None:
        match = _IN_REPOSITORY.fullmatch(source)
        repo, folder = match.groups() if match else (source, "")
        below = glob.escape(f"{folder}/") if folder else ""
        configs = [f"{below}{name}" for name in ("model_index.json", "config.json", "unet/config.json")]
        path = hub.resolve(repo, allow_patterns=configs) / folder
    folders = [] if (path / "model_index.json").is_file() else [path, path / "unet"]
    return any((folder / "config.json").is_file() and _is_part("unet", folder) for folder in folders)


def published_vae(vae: str) -> PublishedSource | None:
    """Returns the source of an autoencoder's hub id whose config is known, or None."""
    for pattern, config in _PUBLISHED_VAES:
        if pattern.search(vae):
            return PublishedSource(vae, "vae", {"vae": config})
    return None


def local_part(source: str) -> Path | None:
    """Returns the path of a part that is here; None for what has to be on the hub.

    Raises:
      UserError: there is no such path, and it cannot be on the hub either.
    """
    path = TOY if source == toy.NAME else local_path(source)
    if path.exists():
        return path
    match = _IN_REPOSITORY.fullmatch(source)
    if match is None or Path(source.split("/")[0]).is_dir():
        return hub.local(source)
    return hub.local(match["repo"])


def check_here(model: Path | None, vae: str = "", unet: str = "") -> None:
    """Refuses parts that are here and cannot be used, as far as their configs and those of the model show.

    Args:
      model: folder or file of the model; None if it is on the hub.
      vae: as `open_vae` takes it; empty for none.
      unet: as `open_unet` takes it; empty for none.

    Raises:
      UserError: a path does not exist, or is something else; or the UNet is one of another kind of model.
    """
    if vae and local_part(vae) is not None:
        open_vae(vae)
    if unet and local_part(unet) is not None:
        source = open_unet(unet)
        if model is not None and model.is_dir():
            check_unet(source, read_json_object(model / "unet" / "config.json"), model)


def architecture(config: Mapping[str, Any]) -> str:
    """Names what a UNet belongs to, from its config: ``SDXL``, ``Stable Diffusion 1.x``, …"""
    if config.get("addition_embed_type") == "text_time":
        return "SDXL"
    width = config.get("cross_attention_dim")
    return {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}.get(width, f"Stable Diffusion, {width} wide")


def check_unet(unet: PartSource, model: Mapping[str, Any], where: str | os.PathLike) -> None:
    """Refuses a UNet of another kind of model, which would otherwise fail later and in other words.

    Args:
      unet: the UNet.
      model: config of the model's own UNet.
      where: the model.

    Raises:
      UserError: they differ; the message names both.
    """
    configs = unet.config("unet"), model
    found, expected = (
        f"{architecture(config).partition(',')[0]} with text states {config.get('cross_attention_dim')} wide"
        for config in configs
    )
    if found != expected:
        raise UserError(
            f"{unet.where('unet')} is a UNet of {found}, but {where} is {expected}: expected a UNet of the same kind"
        )


def _open(part: str, source: str | os.PathLike) -> PartSource:
    path = local_part(os.fspath(source)) or _fetch(part, os.fspath(source))
    expected = f"expected {_WORDS[part]}'s folder, with config.json, or hub id"
    if path.is_file():
        raise UserError(f"{part} = {str(source)!r} is a file: {expected}")
    for folder in (path, path / part):
        if (folder / "config.json").is_file() and _is_part(part, folder):
            return PartSource(folder, part)
    raise UserError(f"{part} = {str(source)!r} is {describe(path)}: {expected}")


def _is_part(part: str, folder: Path) -> bool:
    name = read_json_object(folder / "config.json").get("_class_name", _CLASSES[part])
    return isinstance(name, str) and name.startswith(_CLASSES[part])


def _fetch(part: str, source: str) -> Path:
    """Fetches a part, and nothing else, from ``OWNER/NAME`` or from a folder of it."""
    match = _IN_REPOSITORY.fullmatch(source)
    if match is None:
        return hub.resolve(source, components=(part,))
    repo, folder = match["repo"], match["folder"]

    def select(names: Sequence[str]) -> list[str]:
        inside = [name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")]
        selected = hub.select_files(inside, components=(part,))
        if not selected:
            folders = sorted({name.rpartition("/")[0] for name in names if name.endswith("/config.json")})
            raise UserError(
                f"{repo} on the hub has nothing of {_WORDS[part]} in {folder}: found {', '.join(folders) or 'none'}"
            )
        return [f"{folder}/{name}" for name in selected]

    kept = tuple(f"{glob.escape(folder)}{below}/config.json" for below in ("", f"/{part}"))
    try:
        return hub.resolve(repo, select=select, kept=kept) / folder
    except UserError as error:
        raise UserError(f"no such file or folder: {source}; nor is it on the hub: {error}") from error

"""Model families. A family is a subpackage here, and each of them says whether a model is its own."""

import importlib
import os
import pkgutil
from pathlib import Path
from types import ModuleType

from spo_jax import toy
from spo_jax.core.errors import UserError
from spo_jax.core.files import check_free, read_json_object
from spo_jax.core.lazy import late
from spo_jax.weights import hub
from spo_jax.weights.kinds import describe

INDEX = "model_index.json"

__getattr__, __dir__ = late(__name__, {"open_pipeline": "spo_jax.models.opening"})


def families() -> list[str]:
    """Returns the names of the model families, which are the subpackages here."""
    return [module.name for module in pkgutil.iter_modules(__path__) if module.ispkg]


def family_module(family: str, name: str) -> ModuleType:
    """Imports a module of a family, such as ``pipeline``, ``save`` or ``kohya``, which every family has."""
    return importlib.import_module(f"{__name__}.{family}.{name}")


def resolve(model: str | os.PathLike, revision: str | None = None) -> Path:
    """Returns the local path of a model, which is downloaded and cached if it is a hub id.

    Args:
      model: local folder or file, hub id, or ``"toy"``.
      revision: branch, tag or commit of a hub id.

    Raises:
      UserError: as `spo_jax.weights.hub.resolve`.
    """
    if str(model) == toy.NAME:
        return toy.ASSETS / "pipeline"
    components = {name for family in families() for name in family_module(family, "sources").COMPONENTS}
    return hub.resolve(model, revision, components=tuple(sorted(components)))


def family_of(path: Path) -> str:
    """Returns the name of the family that claims a local folder or file.

    Raises:
      UserError: none does; the message says why.
    """
    for family in families():
        if family_module(family, "sources").claims(path):
            return family
    raise UserError(_reason(path))


def check_model(model: str, base: str = "", vae: str = "", unet: str = "") -> None:
    """Refuses a model that cannot be opened, as far as that shows without jax, weights and the network.

    Args:
      model: as `open_pipeline` takes it, like ``base``, ``vae`` and ``unet``.
      base: where a checkpoint in one file takes its tokenizers and scheduler from.
      vae: an autoencoder that replaces the model's own.
      unet: a UNet that replaces the model's own.

    Raises:
      UserError: a path does not exist, or is something else than what is expected there.
    """
    path = _local(model)
    if base and base != toy.NAME:
        hub.local(base)
    for family in families() if path is None else [family_of(path)]:
        if path is not None:
            family_module(family, "sources").check_source(path, base)
        family_module(family, "parts").check_here(path, vae, unet)


def kind_and_channels(model: str) -> tuple[str, int]:
    """Returns the kind of a model and the channels of its latents, as far as configs show that are here or known.

    Args:
      model: as `open_pipeline` takes it.

    Returns:
      `Pipeline.kind` and channels; an empty kind and 0 channels for a file, and for most models on the hub.

    Raises:
      UserError: a config is missing or damaged.
    """
    path = _local(model)
    if path is not None and path.is_file():
        return "", 0
    named = families() if path is None else [family_of(path)]
    found = (family_module(family, "sources").kind_and_channels(model, path) for family in named)
    return next((latents for latents in found if latents[0]), ("", 0))


def _local(model: str) -> Path | None:
    """Returns the path of a model that is here; None for one on the hub."""
    return toy.ASSETS / "pipeline" if model == toy.NAME else hub.local(model)


def is_unet_alone(source: str) -> bool:
    """Reports whether a source is a UNet without the rest of a pipeline, which `open_pipeline` takes as ``unet``.

    Args:
      source: folder, file, hub id, or ``OWNER/NAME/FOLDER``; of what is on the hub, only configs are fetched.

    Raises:
      UserError: as `spo_jax.weights.hub.resolve`.
    """
    return any(family_module(family, "parts").is_unet_alone(source) for family in families())


def check_folder(out: Path, overwrite: bool) -> None:
    """Refuses a path at which a merged pipeline must not replace what is there.

    Raises:
      UserError: ``out`` exists, and ``overwrite`` is false or ``out`` is not a pipeline's folder.
    """
    check_free(out, overwrite)
    if out.exists() and not (out / INDEX).is_file():
        raise UserError(f"{out} is not a pipeline's folder: --overwrite would delete all of it; choose another --out")


def _reason(path: Path) -> str:
    """Explains why no family claims a folder."""
    file = path / INDEX
    if not file.is_file():
        what = describe(path)
        aside = "; a LoRA is named with --lora" if "LoRA" in what else ""
        expected = f"expected a diffusers pipeline folder or the hub id of one{aside}"
        return f"{path} is {what}: no model_index.json here; {expected}"
    classes = [name for family in families() for name in family_module(family, "sources").CLASSES]
    name = read_json_object(file).get("_class_name")
    return f"{file}: _class_name is {name!r}, expected {' or '.join(map(repr, classes))}"

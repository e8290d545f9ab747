"""Model families. A family is a subpackage here, and `open_pipeline` asks each of them whether a model is its own."""

import importlib
import os
import pkgutil
from pathlib import Path
from types import ModuleType

import jax.numpy as jnp
from jax.sharding import Mesh

from spo_jax import toy
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object
from spo_jax.core.typing import DType
from spo_jax.models.base import Pipeline
from spo_jax.weights import hub

_CONFIG_FILES = ("model_index.json", "*/config.json", "scheduler/*.json")


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
    components = {name for family in families() for name in family_module(family, "pipeline").COMPONENTS}
    return hub.resolve(model, revision, components=tuple(sorted(components)))


def open_pipeline(
    model: str | os.PathLike,
    *,
    revision: str | None = None,
    dtype: DType = jnp.float32,
    remat: bool = False,
    mesh: Mesh | None = None,
    vae: str | os.PathLike = "",
    base: str | os.PathLike = "",
    abstract: bool = False,
) -> Pipeline:
    """Reads a text-to-image model from a diffusers folder or a single-file checkpoint.

    Args:
      model: folder, hub id, ``"toy"``, or single-file checkpoint.
      revision: branch, tag or commit of a hub id.
      dtype: dtype of weights and activations; SDXL's autoencoder is float32 if its config says `force_upcast`.
      remat: whether the trained network uses gradient checkpointing.
      mesh: mesh on which the weights are placed; None places them on the first device.
      vae: folder or hub id of an autoencoder that replaces the model's own.
      base: folder or hub id whose tokenizers and scheduler a single file uses; by default the published model of its
        architecture.
      abstract: return shapes instead of weights, for programs that are compiled but not run. Only configs are read,
        and those of published models are known without downloading them.

    Raises:
      UserError: the model does not belong to any family, or parts of it are missing or do not fit; the message names
        the file and the field.
    """
    options = {"dtype": dtype, "remat": remat, "mesh": mesh, "vae": vae}
    is_remote = str(model) != toy.NAME and not Path(model).expanduser().exists()
    if abstract and is_remote:
        for family in families():
            published = family_module(family, "pipeline").load_published(str(model), **options)
            if published is not None:
                return published
        path = hub.resolve(model, revision, allow_patterns=_CONFIG_FILES)
    else:
        path = resolve(model, revision)
    for family in families():
        module = family_module(family, "pipeline")
        if module.claims(path):
            return module.load(path, **options, base=base, abstract=abstract)
    raise UserError(_reason(path))


def _reason(path: Path) -> str:
    """Explains why no family claims a folder."""
    file = path / "model_index.json"
    if not file.is_file():
        return f"{path}: no model_index.json here; expected a diffusers pipeline folder or the hub id of one"
    classes = [name for family in families() for name in family_module(family, "sources").CLASSES]
    name = read_json_object(file).get("_class_name")
    return f"{file}: _class_name is {name!r}, expected {' or '.join(map(repr, classes))}"

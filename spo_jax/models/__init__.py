"""Model families; a family is a folder, and `open_pipeline` asks each whether a model is its own."""

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
    """The names of the families: every folder here is one."""
    return [module.name for module in pkgutil.iter_modules(__path__) if module.ispkg]


def family_module(family: str, name: str) -> ModuleType:
    """A family's module, such as its ``pipeline``, ``save`` or ``kohya``; all families give them these names."""
    return importlib.import_module(f"{__name__}.{family}.{name}")


def resolve(model: str | os.PathLike, revision: str | None = None) -> Path:
    """Where a model lies: the toy's folder, a folder or file here, or a hub id (downloaded and cached).

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
    """Reads a text-to-image model: a diffusers folder or a single-file checkpoint.

    Args:
      model: folder, hub id, ``"toy"``, or a checkpoint in one file.
      revision: branch, tag or commit of a hub id.
      dtype: of weights and activations; SDXL's autoencoder is float32 if its config says `force_upcast`.
      remat: gradient checkpointing in the trained network.
      mesh: where the weights go; without one, to the first device.
      vae: folder or hub id of an autoencoder that replaces the model's own.
      base: folder or hub id that lends a single file its tokenizers and scheduler; by default the published model of
        its architecture.
      abstract: give shapes instead of weights, for programs that are compiled and not run. Only configs are read; those
        of published models are known without fetching.

    Raises:
      UserError: the model is of no family here; parts are missing or do not fit, with file and field.
    """
    options = {"dtype": dtype, "remat": remat, "mesh": mesh, "vae": vae}
    is_remote = str(model) != toy.NAME and not Path(model).expanduser().exists()
    if abstract and is_remote:
        for family in families():
            found = family_module(family, "pipeline").load_published(str(model), **options)
            if found is not None:
                return found
        path = hub.resolve(model, revision, allow_patterns=_CONFIG_FILES)
    else:
        path = resolve(model, revision)
    for family in families():
        module = family_module(family, "pipeline")
        if module.claims(path):
            return module.load(path, **options, base=base, abstract=abstract)
    raise UserError(_why_not(path))


def _why_not(path: Path) -> str:
    file = path / "model_index.json"
    if not file.is_file():
        return f"{path}: no model_index.json here; expected a diffusers pipeline folder or a hub id of one"
    classes = [name for family in families() for name in family_module(family, "sources").CLASSES]
    name = read_json_object(file).get("_class_name")
    return f"{file}: _class_name is {name!r}, expected {' or '.join(map(repr, classes))}"

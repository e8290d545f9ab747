"""A whole pipeline folder with an adapter in its weights."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.files import check_free, read_json_object, write_json
from spo_jax.core.typing import Params
from spo_jax.models.lora import merge
from spo_jax.pipeline.build import Pipeline
from spo_jax.weights import store
from spo_jax.weights.diffusers import write_component
from spo_jax.weights.rules import to_state

_INDEX = "model_index.json"


def check_folder(out: Path, overwrite: bool) -> None:
    """Refuses what `write_merged` must not replace.

    Raises:
      UserError: ``out`` exists, and ``overwrite`` is false or it is no pipeline's folder.
    """
    check_free(out, overwrite)
    if out.exists() and not (out / _INDEX).is_file():
        raise UserError(f"{out} is no pipeline's folder: --overwrite would delete all of it, choose another --out")


def write_merged(out: Path, pipeline: Pipeline, lora: Params, scale: float, overwrite: bool = False) -> None:
    """Copies the pipeline's folder and replaces the UNet's weights by the merged ones, float32.

    diffusers loads the copy without a ``variant=``. It appears whole or not at all; what it was copied from stays as
    it is.

    Args:
      overwrite: replace the pipeline that is at ``out``.

    Raises:
      UserError: as `check_folder`; ``out`` is what would be copied; it cannot be written.
    """
    check_folder(out, overwrite)
    if out.resolve() == pipeline.folder.resolve():
        raise UserError(f"{out} is the base model itself: choose another --out")
    unet_config = read_json_object(pipeline.folder / "unet" / "config.json")
    state = to_state(merge(pipeline.params["unet"], lora, scale), np.float32)
    temporary = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        copy = temporary / "copy"
        shutil.copytree(pipeline.folder, copy, ignore=_skip_unet_weights)
        write_component(copy / "unet", unet_config, state)
        _drop_absent(copy)
        for folder in [entry for entry in copy.iterdir() if entry.is_dir()]:
            _drop_variant(folder)
        if out.exists():
            os.replace(out, temporary / "older")
        os.replace(copy, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _skip_unet_weights(folder: str, names: list[str]) -> list[str]:
    """The old UNet weights in whatever form, and hidden folders of the hub's cache."""
    inside = Path(folder).name == "unet"
    return [name for name in names if name.startswith(".") or (inside and name != "config.json")]


def _drop_absent(folder: Path) -> None:
    """Takes out of the index what is not fetched with a base, such as the safety checker: diffusers would miss it."""
    index = read_json_object(folder / _INDEX)
    for name, value in index.items():
        if isinstance(value, list) and not (folder / name).is_dir():
            index[name] = [None, None]
    if index.get("safety_checker") == [None, None]:
        index["requires_safety_checker"] = False
    write_json(folder / _INDEX, index)


def _drop_variant(folder: Path) -> None:
    """Gives weights that are there as a variant only (``fp16``) the plain name, as the UNet's have: with both in one
    pipeline diffusers finds either the one or the other. Shards keep their names, for their index tells them."""
    names = [entry.name for entry in folder.iterdir()]
    for kind in ("diffusers", "transformers"):
        name, variant = store.choose_weights(names, kind) or (None, None)
        if variant is not None:
            (folder / name).rename(folder / name.replace(f".{variant}", "", 1))

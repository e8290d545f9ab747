"""A whole pipeline with an adapter in its weights, as a folder or as one file."""

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.files import check_free, read_json_object, write_json
from spo_jax.core.trees import flatten, unflatten
from spo_jax.core.typing import Params
from spo_jax.models.stable_diffusion.architecture import Kind
from spo_jax.models.stable_diffusion.pipeline import Pipeline
from spo_jax.models.stable_diffusion.single_file import write_single_file
from spo_jax.nn.lora import merge
from spo_jax.weights import store
from spo_jax.weights.components import text_state, write_component
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
    """Copies the pipeline's folder, of SD or SDXL, and replaces the UNet's weights by the merged ones, float32.

    diffusers loads the copy without a ``variant=``. It appears whole or not at all; what it was copied from stays as
    it is.

    Args:
      overwrite: replace the pipeline that is at ``out``.

    Raises:
      UserError: as `check_folder`; ``out`` is what would be copied; the pipeline was read from a single file; ``out``
        cannot be written (what was there stays).
    """
    check_folder(out, overwrite)
    if not pipeline.folder.is_dir():
        raise UserError(f"{pipeline.folder} is a single file, not a folder to copy: export with --format=single-file")
    if out.resolve() == pipeline.folder.resolve():
        raise UserError(f"{out} is the base model itself: choose another --out")
    unet_config = read_json_object(pipeline.folder / "unet" / "config.json")
    state = _merged_unet(pipeline, lora, scale, np.float32)
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
        _swap(copy, out, temporary / "older")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        if temporary is not None and (out.exists() or not (temporary / "older").exists()):
            shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, out: Path, older: Path) -> None:
    """Puts ``new`` at ``out``; what is there is moved to ``older``, and back if that fails."""
    if not out.exists():
        os.replace(new, out)
        return
    os.replace(out, older)
    try:
        os.replace(new, out)
    except OSError:
        os.replace(older, out)
        raise


def write_merged_file(
    out: Path, pipeline: Pipeline, lora: Params, scale: float, dtype: str = "float32", overwrite: bool = False
) -> None:
    """One ``.safetensors`` for the web UIs: the UNet with the adapter, autoencoder and text encoders.

    It appears whole or not at all. Beside the pipeline's own weights no more than those of the file are held.

    Args:
      dtype: of the numbers in the file: ``float16`` halves it.
      overwrite: replace the file that is at ``out``.

    Raises:
      UserError: ``out`` is taken, is what the pipeline was read from, or cannot be written; weights beyond the range
        of ``dtype``.
    """
    check_free(out, overwrite)
    if out.resolve() == pipeline.folder.resolve():
        raise UserError(f"{out} is the base model itself: choose another --out")
    numbers = np.dtype(dtype)
    with np.errstate(over="ignore"):  # told by name when it is written
        components = {
            name: text_state(params, numbers) if name.startswith("text_encoder") else to_state(params, numbers)
            for name, params in pipeline.params.items()
            if name != "unet"
        }
        components["unet"] = _merged_unet(pipeline, lora, scale, numbers)
    write_single_file(out, _file_kind(pipeline), components, dataclasses.asdict(pipeline.scheduler))


def _merged_unet(pipeline: Pipeline, lora: Params, scale: float, dtype: Any) -> dict[str, np.ndarray]:
    """The UNet with the adapter under torch's names, merged tensor by tensor: one more copy of 10 GB is enough."""
    state: dict[str, np.ndarray] = {}
    halves = flatten(lora)
    for path, leaf in flatten(pipeline.params["unet"]).items():
        names = [f"{path.removesuffix('/kernel')}/lora_{half}" for half in "AB"]
        adapter = {name: halves[name] for name in names if path.endswith("/kernel") and name in halves}
        state |= to_state(merge(unflatten({path: leaf}), unflatten(adapter), scale), dtype)
    return state


def _file_kind(pipeline: Pipeline) -> Kind:
    if pipeline.kind == "sdxl":
        return "sdxl"
    # OpenCLIP's text tower, with which SD 2.x came, has the exact GELU.
    return "sd21" if pipeline.text_encoder.config.hidden_act == "gelu" else "sd15"


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

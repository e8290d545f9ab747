"""Writes a whole pipeline with an adapter merged into its weights, as a diffusers folder of any family."""

import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object, write_json
from spo_jax.core.trees import flatten, unflatten
from spo_jax.core.typing import Params
from spo_jax.models import INDEX, check_folder
from spo_jax.models.base import Pipeline
from spo_jax.nn.lora import merge
from spo_jax.weights import store
from spo_jax.weights.components import write_component
from spo_jax.weights.rules import to_state


def write_merged(out: Path, pipeline: Pipeline, lora: Params, scale: float, overwrite: bool = False) -> None:
    """Copies the pipeline's folder and replaces the trained network's weights by the merged ones in float32.

    diffusers loads the copy without a ``variant=``. The copy appears as a whole or not at all, and the original stays
    as it is.

    Args:
      out: folder to write.
      pipeline: the base model.
      lora: tree of the adapter.
      scale: factor of the adapter's update.
      overwrite: whether a pipeline at ``out`` is replaced.

    Raises:
      UserError: as `check_folder`; ``out`` is the base model's folder; the pipeline was read from a single file;
        ``out`` cannot be written (an older folder there is kept).
    """
    check_folder(out, overwrite)
    if not pipeline.folder.is_dir():
        raise UserError(f"{pipeline.folder} is a single file, not a folder to copy: export with --format=single-file")
    if out.resolve() == pipeline.folder.resolve():
        raise UserError(f"{out} is the base model itself: choose another --out")
    # Merge before anything is written.
    network = pipeline.TRAINED
    config = read_json_object(pipeline.folder / network / "config.json")
    state = merged_network(pipeline, lora, scale, np.float32)
    # Assemble the copy in a temporary folder beside ``out``, and move it there once it is complete.
    temporary = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        copy = temporary / "copy"
        shutil.copytree(pipeline.folder, copy, ignore=functools.partial(_skip_weights, network))
        write_component(copy / network, config, state)
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
    """Moves ``new`` to ``out``; an older folder there is moved to ``older``, and back if the first move fails."""
    if not out.exists():
        os.replace(new, out)
        return
    os.replace(out, older)
    try:
        os.replace(new, out)
    except OSError:
        os.replace(older, out)
        raise


def merged_network(pipeline: Pipeline, lora: Params, scale: float, dtype: Any) -> dict[str, np.ndarray]:
    """Returns the trained network with the adapter merged into it, under torch's names.

    It is merged tensor by tensor, so that SDXL's 10 GB are held once more and not twice more.
    """
    state: dict[str, np.ndarray] = {}
    halves = flatten(lora)
    for path, leaf in flatten(pipeline.params[pipeline.TRAINED]).items():
        names = [f"{path.removesuffix('/kernel')}/lora_{half}" for half in "AB"]
        adapter = {name: halves[name] for name in names if path.endswith("/kernel") and name in halves}
        state |= to_state(merge(unflatten({path: leaf}), unflatten(adapter), scale), dtype)
    return state


def _skip_weights(network: str, folder: str, names: list[str]) -> list[str]:
    """Names the files not to copy: the network's old weights in any format, and hidden folders of the hub's cache."""
    inside = Path(folder).name == network
    return [name for name in names if name.startswith(".") or (inside and name != "config.json")]


def _drop_absent(folder: Path) -> None:
    """Removes components that are not downloaded with a base, such as the safety checker, from the index.

    diffusers refuses a folder whose index names a component that is missing.
    """
    index = read_json_object(folder / INDEX)
    for name, value in index.items():
        if isinstance(value, list) and not (folder / name).is_dir():
            index[name] = [None, None]
    if index.get("safety_checker") == [None, None]:
        index["requires_safety_checker"] = False
    write_json(folder / INDEX, index)


def _drop_variant(folder: Path) -> None:
    """Renames weights that exist only as a variant (``fp16``) to the plain name, which the merged network has.

    With both kinds of names in one pipeline, diffusers finds either the one or the other. Shards keep their names,
    because their index lists them.
    """
    names = [entry.name for entry in folder.iterdir()]
    for kind in ("diffusers", "transformers"):
        name, variant = store.choose_weights(names, kind) or (None, None)
        if variant is not None:
            (folder / name).rename(folder / name.replace(f".{variant}", "", 1))

"""Reads and writes preference models: step-aware ones (SPM), and the plain CLIPs from which they start (PickScore)."""

import dataclasses
import functools
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spo_jax import toy
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object, write_atomic
from spo_jax.core.typing import DType, Params
from spo_jax.data.original_tokenizer import HF_FAST, open_tokenizer
from spo_jax.data.tokenizer import AbstractTokenizer, Tokenizer
from spo_jax.nn.clip import CLIPModel
from spo_jax.nn.clip_config import CLIP_H, CLIPConfig
from spo_jax.nn.shapes import clip_shapes
from spo_jax.parallel.sharding import abstract_weights, place_weights
from spo_jax.rewards.common.preference_files import (
    TRAINED_ON,
    check_kind,
    read_config,
    resolve_model,
    tokenizer_folder,
)
from spo_jax.weights import components, hub
from spo_jax.weights.rules import to_state

_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PreferenceModel:
    """A preference model.

    Attributes:
      clip: the network.
      params: its weights.
      tokenizer: tokenizer of its text tower.
    """

    clip: CLIPModel
    params: Params
    tokenizer: Tokenizer


# Reading


def load_spm(
    model: str | os.PathLike,
    *,
    tokenizer: str | os.PathLike | None = None,
    dtype: DType = jnp.float32,
    mesh: Mesh | None = None,
    judges: str | None = None,
    abstract: bool = False,
    flags: tuple[str, str] = ("--config.spm.model", "--config.spm.tokenizer"),
) -> PreferenceModel:
    """Reads a step-aware preference model in transformers' CLIPModel layout (with the SPO authors' key names).

    Args:
      model: folder, weights file, hub id, one file of a hub repository (``owner/name/file``), or ``"toy"``.
      tokenizer: folder or hub id of its tokenizer, if ``model`` has none.
      dtype: dtype of weights and activations.
      mesh: mesh on which the weights are placed; None places them on the first device.
      judges: `Pipeline.kind` of the pipeline whose images it judges; None skips the check.
      abstract: return shapes instead of weights; a model without a local config has the published one.
      flags: flags that name the model and its tokenizer, for error messages; the second is empty if there is none.

    Raises:
      UserError: the model is missing or does not fit, or it was trained on another kind of pipeline.
    """
    if abstract:
        clip = abstract_clip(str(model), dtype)
        length = clip.config.text.max_position_embeddings
        return PreferenceModel(clip, abstract_weights(clip_shapes(clip), dtype, mesh), AbstractTokenizer(length))
    path = resolve_model(str(model))
    config, where = read_config(path)
    check_kind(path, config, judges, flags[0])
    clip = CLIPModel(CLIPConfig.from_dict(config, where, time_conditioned=True), dtype=dtype)
    return _read_model(path, clip, mesh, str(model), tokenizer_folder(path, tokenizer, flags[1]))


def load_plain_clip(
    model: str | os.PathLike,
    *,
    tokenizer: str | os.PathLike | None = None,
    dtype: DType = jnp.float32,
    mesh: Mesh | None = None,
    flag: str = "--tokenizer",
) -> PreferenceModel:
    """Reads a plain CLIP in transformers' layout, such as PickScore.

    Args:
      model: folder or hub id.
      tokenizer: folder or hub id of its tokenizer, if ``model`` has none.
      dtype: dtype of weights and activations.
      mesh: mesh on which the weights are placed; None places them on the first device.
      flag: flag that names a tokenizer, for error messages.

    Raises:
      UserError: the model is missing or does not fit.
    """
    path = hub.resolve(model)
    file = path / "config.json"
    clip = CLIPModel(CLIPConfig.from_dict(read_json_object(file), str(file)), dtype=dtype)
    return _read_model(path, clip, mesh, str(model), tokenizer_folder(path, tokenizer, flag))


def _read_model(path: Path, clip: CLIPModel, mesh: Mesh | None, title: str, tokenizer: Path) -> PreferenceModel:
    read = read_tokenizer(tokenizer, clip.config, title)
    weights = components.load_clip(path, clip_shapes(clip), dtype=clip.dtype)
    return PreferenceModel(clip, place_weights(weights, mesh, title=title), read)


def read_tokenizer(folder: Path, config: CLIPConfig, model: str, form: str = HF_FAST) -> Tokenizer:
    """Reads the tokenizer of a CLIP.

    Args:
      folder: the tokenizer's folder.
      config: the model's config.
      model: its name in messages.
      form: the tokenisation, as `spo_jax.data.original_tokenizer.open_tokenizer` takes it.

    Raises:
      UserError: it cannot be read, or has tokens that the model does not know.
    """
    tokenizer = open_tokenizer(folder, form)
    tokenizer.check_fits(config.text.vocab_size, config.text.max_position_embeddings, model)
    return tokenizer


def abstract_clip(model: str, dtype: DType, remat: bool = False) -> CLIPModel:
    """Makes the network of a step-aware preference model from its config alone, or from the published config.

    Args:
      model: name of the model; the published config is used unless it is ``"toy"`` or a local path.
      dtype: dtype of the activations.
      remat: whether layers are recomputed in the backward pass.
    """
    is_local = model in toy.PREFERENCE_MODELS or Path(model).exists()
    config, where = read_config(resolve_model(model)) if is_local else (CLIP_H, model)
    return CLIPModel(CLIPConfig.from_dict(config, where, time_conditioned=True), remat, dtype)


# Writing


def write_spm(
    folder: str | os.PathLike,
    config: CLIPConfig,
    params: Params,
    tokenizer: Path | None = None,
    dtype: DType = jnp.float32,
    trained_on: str = "",
) -> None:
    """Writes a preference model as `load_spm` reads it, with its weights under the published names.

    Args:
      folder: folder to write.
      config: config of the network.
      params: weights, as host arrays.
      tokenizer: folder whose tokenizer files are copied; None copies none.
      dtype: dtype of the weights in the file.
      trained_on: `Pipeline.kind` of the pipeline on whose predictions the model was trained.

    Raises:
      UserError: the folder cannot be written, or a weight does not fit ``dtype``.
    """
    # Scalars stay float32 and need no check.
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(params) if np.ndim(x))
    if largest > float(jnp.finfo(dtype).max):
        raise UserError(f"{folder}: a weight of {largest:g} does not fit {np.dtype(dtype)}; write float32")
    content = config_fields(config) | ({TRAINED_ON: trained_on} if trained_on else {})
    # The SPO authors' class holds the network as `self.model`.
    state = {f"model.{name}": value for name, value in to_state(params, np.dtype(dtype)).items()}
    components.write_component(folder, content, state, kind="transformers")
    if tokenizer is not None:
        copy_tokenizer(tokenizer, Path(folder) / "tokenizer")


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copies the files of a tokenizer to a folder."""
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            write_atomic(folder / name, functools.partial(shutil.copyfile, source / name))


def write_clip(folder: str | os.PathLike, config: CLIPConfig, params: Params, dtype: DType = jnp.float32) -> None:
    """Writes a plain CLIP, without a tokenizer, as transformers' ``save_pretrained`` does.

    Args:
      folder: folder to write.
      config: config of the network, which is not time-conditioned.
      params: weights, as host arrays.
      dtype: dtype of the weights in the file.

    Raises:
      UserError: the folder cannot be written.
    """
    components.write_component(folder, config_fields(config), to_state(params, np.dtype(dtype)), kind="transformers")


def config_fields(config: CLIPConfig) -> dict[str, Any]:
    """Returns the content of a CLIP's ``config.json``, as `CLIPConfig.from_dict` reads it."""

    def tower(config: Any, kind: str) -> dict[str, Any]:
        return dataclasses.asdict(config) | {"model_type": kind}

    return {
        "architectures": ["HFTimeConditionedCLIPModel" if config.time_conditioned else "CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.projection_dim,
        "text_config": tower(config.text, "clip_text_model"),
        "vision_config": tower(config.vision, "clip_vision_model"),
    }

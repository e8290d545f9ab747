"""Preference models on disk: step-aware ones (SPM), and the plain CLIPs that they start from (PickScore)."""

import dataclasses
import os
import shutil
from collections.abc import Mapping
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
from spo_jax.data.tokenizer import AbstractTokenizer, Tokenizer
from spo_jax.nn.clip import CLIPModel
from spo_jax.nn.clip_config import CLIP_H, CLIPConfig
from spo_jax.nn.shapes import clip_shapes
from spo_jax.parallel.sharding import abstract_weights, place_weights
from spo_jax.weights import components, hub
from spo_jax.weights.rules import to_state

_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
# Field of config.json: the kind of pipeline whose images a model was trained on. Shapes do not show it.
TRAINED_ON = "_trained_on"
_PUBLISHED = {
    "sd-v1-5_step-aware_preference_model.bin": "sd",
    "sdxl_step-aware_preference_model.bin": "sdxl",
}
_KIND_NAMES = {"sd": "Stable Diffusion 1.x or 2.x", "sdxl": "SDXL"}


@dataclasses.dataclass(frozen=True)
class PreferenceModel:
    """A preference model: network, weights, tokenizer."""

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
) -> PreferenceModel:
    """Reads a step-aware preference model in transformers' CLIPModel layout (with the SPO authors' key names).

    Args:
      model: folder, weights file, hub id, one file of a hub repository (``owner/name/file``), or ``"toy"``.
      tokenizer: folder or hub id of its tokenizer when ``model`` does not hold one.
      dtype: of weights and activations.
      mesh: where the weights go; without one, to the first device.
      judges: `Pipeline.kind` of the pipeline whose images it is to judge; None asks for nothing.
      abstract: give shapes instead of weights; a model that is not here has the published config.

    Raises:
      UserError: the model is missing or does not fit; it was trained on another kind of pipeline.
    """
    if abstract:
        clip = abstract_clip(str(model), dtype)
        length = clip.config.text.max_position_embeddings
        return PreferenceModel(clip, abstract_weights(clip_shapes(clip), dtype, mesh), AbstractTokenizer(length))
    path = resolve_model(str(model))
    config, where = read_config(path)
    check_kind(path, config, judges)
    clip = CLIPModel(CLIPConfig.from_dict(config, where, time_conditioned=True), dtype=dtype)
    return _read_model(path, clip, mesh, str(model), tokenizer_folder(path, tokenizer))


def load_plain_clip(
    model: str | os.PathLike,
    *,
    tokenizer: str | os.PathLike | None = None,
    dtype: DType = jnp.float32,
    mesh: Mesh | None = None,
    flag: str = "--tokenizer",
) -> PreferenceModel:
    """Reads a plain CLIP in transformers' layout, PickScore or any other.

    Args:
      model: folder or hub id.
      tokenizer: folder or hub id, when ``model`` does not hold one.
      dtype: of weights and activations.
      mesh: where the weights go; without one, to the first device.
      flag: names a tokenizer, for messages.

    Raises:
      UserError: the model is missing or does not fit.
    """
    path = hub.resolve(model)
    file = path / "config.json"
    clip = CLIPModel(CLIPConfig.from_dict(read_json_object(file), str(file)), dtype=dtype)
    return _read_model(path, clip, mesh, str(model), tokenizer_folder(path, tokenizer, flag))


def _read_model(path: Path, clip: CLIPModel, mesh: Mesh | None, title: str, tokenizer: Path) -> PreferenceModel:
    weights = components.load_clip(path, clip_shapes(clip), dtype=clip.dtype)
    return PreferenceModel(clip, place_weights(weights, mesh, title=title), Tokenizer(tokenizer))


def abstract_clip(model: str, dtype: DType, remat: bool = False) -> CLIPModel:
    """The network of a step-aware preference model, from its config alone; the published one where none is here."""
    is_here = model == toy.NAME or Path(model).exists()
    config, where = read_config(resolve_model(model)) if is_here else (CLIP_H, model)
    return CLIPModel(CLIPConfig.from_dict(config, where, time_conditioned=True), remat, dtype)


def resolve_model(model: str) -> Path:
    """The local folder or file of a preference model; ``owner/name/file`` is one file of a hub repository."""
    if model == toy.NAME:
        return toy.ASSETS / "spm"
    parts = model.split("/")
    if len(parts) == 3 and not Path(model).exists() and not model.startswith(("/", ".", "~")):
        return hub.resolve("/".join(parts[:2]), allow_patterns=(parts[2],)) / parts[2]
    return hub.resolve(model)


def read_config(path: Path) -> tuple[dict[str, Any], str]:
    """The config of a preference model's folder or file, and the file that it came from."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    if (path / "model_index.json").is_file():
        raise UserError(f"{path}: this is a diffusion pipeline; expected a preference model or a CLIP")
    # The published checkpoints are single files of CLIP ViT-H/14 without a config beside them.
    config = read_json_object(file) if file.is_file() or path.is_dir() else CLIP_H
    if "_class_name" in config:  # diffusers writes it, transformers does not
        raise UserError(f"{file}: this is a {config['_class_name']}; expected a preference model or a CLIP")
    return config, str(file)


def tokenizer_folder(path: Path, tokenizer: str | os.PathLike | None, flag: str = "--config.spm.tokenizer") -> Path:
    """Where a model's tokenizer is: in ``tokenizer`` (folder or hub id) if that is given, otherwise beside the model.

    Raises:
      UserError: it is in neither; ``flag`` names one.
    """
    if tokenizer is not None:
        path = hub.resolve(tokenizer, allow_patterns=("*.json", "*.txt"))
    for candidate in (path, path / "tokenizer"):
        if any((candidate / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            return candidate
    raise UserError(f"{path}: no tokenizer beside the preference model; name one with {flag}")


# The kind of pipeline that a model was trained on


def trained_on_kind(path: Path, config: Mapping[str, Any]) -> str:
    """`Pipeline.kind` of the pipeline whose predictions a model was trained on; empty where nothing says so."""
    return config.get(TRAINED_ON) or _PUBLISHED.get(path.name, "")


def check_kind(path: Path, config: Mapping[str, Any], judges: str | None, flag: str = "--config.spm.model") -> None:
    """Refuses a model of another kind of pipeline than ``judges`` (`Pipeline.kind`, or None), where that is known."""
    trained_on = trained_on_kind(path, config)
    if judges and trained_on and judges != trained_on:
        raise UserError(
            f"{path}: this preference model was trained on clean predictions of "
            f"{_KIND_NAMES.get(trained_on, trained_on)}, but config field model is {_KIND_NAMES.get(judges, judges)}: "
            f"name a preference model for it with {flag}"
        )


# Writing


def write_spm(
    folder: str | os.PathLike,
    config: CLIPConfig,
    params: Params,
    tokenizer: Path | None = None,
    dtype: DType = jnp.float32,
    trained_on: str = "",
) -> None:
    """Writes a preference model as `load_spm` reads it, its weights under the names of the published ones.

    Args:
      params: host arrays.
      tokenizer: folder whose tokenizer files are copied; None copies none.
      dtype: of the weights in the file.
      trained_on: `Pipeline.kind` of the pipeline whose predictions it was trained on.

    Raises:
      UserError: the folder cannot be written, or a weight does not fit ``dtype``.
    """
    # Scalars stay float32.
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(params) if np.ndim(x))
    if largest > float(jnp.finfo(dtype).max):
        raise UserError(f"{folder}: a weight of {largest:g} does not fit {np.dtype(dtype)}; write float32")
    content = config_fields(config) | ({TRAINED_ON: trained_on} if trained_on else {})
    # The authors' class holds the network as `self.model`.
    state = {f"model.{name}": value for name, value in to_state(params, np.dtype(dtype)).items()}
    components.write_component(folder, content, state, kind="transformers")
    for name in _TOKENIZER_FILES if tokenizer is not None else ():
        if (source := tokenizer / name).is_file():
            write_atomic(Path(folder) / "tokenizer" / name, lambda path, source=source: shutil.copyfile(source, path))


def config_fields(config: CLIPConfig) -> dict[str, Any]:
    """The content of a preference model's ``config.json``, as `CLIPConfig.from_dict` reads it."""

    def tower(config: Any, kind: str) -> dict[str, Any]:
        return dataclasses.asdict(config) | {"model_type": kind}

    return {
        "architectures": ["HFTimeConditionedCLIPModel"],
        "model_type": "clip",
        "projection_dim": config.projection_dim,
        "text_config": tower(config.text, "clip_text_model"),
        "vision_config": tower(config.vision, "clip_vision_model"),
    }

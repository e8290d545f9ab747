"""The files of a preference model: where they are, their config and tokenizer, and what the model was trained on."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spo_jax import toy
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object
from spo_jax.data.tokenizer import holds_tokenizer
from spo_jax.nn.clip_config import CLIP_H
from spo_jax.weights import hub
from spo_jax.weights.kinds import AUTOENCODER, CHECKPOINT, LOHA, LOKR, LORA, NETWORK, describe

# Field of config.json with the kind of pipeline on whose images a model was trained, which shapes do not show.
TRAINED_ON = "_trained_on"
_PUBLISHED = {
    "sd-v1-5_step-aware_preference_model.bin": "sd",
    "sdxl_step-aware_preference_model.bin": "sdxl",
}
_PUBLISHED_TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
TOKENIZER_FILES = ("*.json", "*.txt")  # patterns of what is fetched of a tokenizer
TOKENIZER_NAMES = "tokenizer.json, or vocab.json with merges.txt, there or in tokenizer/"  # what messages call one
_KIND_NAMES = {"sd": "Stable Diffusion 1.x or 2.x", "sdxl": "SDXL"}


def resolve_model(model: str) -> Path:
    """Returns the local path of a preference model; ``owner/name/file`` is one file of a hub repository."""
    path = local_model(model)
    if path is not None:
        return path
    owner, name, *file = model.split("/")
    if file:
        return hub.resolve(f"{owner}/{name}", allow_patterns=file) / file[0]
    return hub.resolve(model)


def local_model(model: str) -> Path | None:
    """Returns the path of a preference model that is here; None for what has to be on the hub.

    Raises:
      UserError: there is no such path, and it cannot be on the hub either.
    """
    if model in toy.PREFERENCE_MODELS:
        return toy.PREFERENCE_MODELS[model]
    parts = model.split("/")
    is_file_on_hub = len(parts) == 3 and not model.startswith(("/", ".", "~")) and not Path(model).exists()
    if not is_file_on_hub:
        return hub.local(model)
    if hub.local("/".join(parts[:2])) is not None:
        raise UserError(f"no such file: {model}")
    return None


def tokenizer_of(model: str) -> str:
    """Returns the hub id of the tokenizer of a published file, which has none beside it; empty for other models."""
    return _PUBLISHED_TOKENIZER if Path(model).name in _PUBLISHED else ""


def check_files(model: str, tokenizer: str, flag: str) -> None:
    """Refuses a preference model, or a plain CLIP, that cannot be read, as far as that shows without jax and network.

    Args:
      model: folder, weights file, hub id, one file of a hub repository, or ``toy``.
      tokenizer: folder or hub id of its tokenizer; empty if ``model`` has one.
      flag: flag that names a tokenizer, for messages; empty if there is none.

    Raises:
      UserError: a path does not exist, or is something else than what is expected there.
    """
    path = local_model(model)
    folder = hub.local(tokenizer) if tokenizer else path
    if path is not None:
        read_config(path)
    if folder is not None:
        tokenizer_folder(folder, None, flag)


def read_config(path: Path, published: Mapping[str, Any] = CLIP_H) -> tuple[Mapping[str, Any], str]:
    """Reads the config of a preference model's folder or file; also returns the path of the config.

    Args:
      path: folder or file of the model.
      published: config of a file that has none beside it. The published preference models are files of CLIP ViT-H/14.

    Raises:
      UserError: there is no config, or it is that of something else.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    if (path / "model_index.json").is_file():
        raise UserError(f"{path}: this is a diffusion pipeline; expected a preference model or a CLIP")
    what = describe(path)
    if path.is_dir() and not file.is_file():
        raise UserError(f"{path} is {what}: expected a preference model or a CLIP, with config.json")
    if path.is_file() and what in (LORA, LOHA, LOKR, CHECKPOINT, AUTOENCODER, NETWORK):
        raise UserError(f"{path} is {what}: expected a preference model or a CLIP")
    config = read_json_object(file) if file.is_file() or path.is_dir() else published
    if "_class_name" in config:  # diffusers writes this field, transformers does not.
        raise UserError(f"{file}: this is a {config['_class_name']}; expected a preference model or a CLIP")
    return config, str(file)


def tokenizer_folder(path: Path, tokenizer: str | os.PathLike | None, flag: str = "--config.spm.tokenizer") -> Path:
    """Returns the folder of a model's tokenizer.

    Args:
      path: folder or file of the model; its tokenizer is beside it unless ``tokenizer`` is given.
      tokenizer: folder or hub id of the tokenizer.
      flag: flag that names a tokenizer, for error messages; empty if there is none.

    Raises:
      UserError: there is no tokenizer.
    """
    if tokenizer is not None:
        path = hub.resolve(tokenizer, allow_patterns=TOKENIZER_FILES)
    found = find_tokenizer(path)
    if found is not None:
        return found
    hint = f"name one with {flag}" if flag else "copy one into its folder"
    raise UserError(f"{path}: no tokenizer beside the preference model; {hint}")


def find_tokenizer(path: Path) -> Path | None:
    """Returns the folder of the tokenizer in a model's folder, or beside its file; None if there is none."""
    folder = path.parent if path.is_file() else path
    for candidate in (folder, folder / "tokenizer", folder / "processor"):
        if holds_tokenizer(candidate):
            return candidate
    return None


# The kind of pipeline on whose images a model was trained


def trained_on_kind(path: Path, config: Mapping[str, Any]) -> str:
    """Returns `Pipeline.kind` of the pipeline on whose predictions a model was trained; empty if it is unknown."""
    return config.get(TRAINED_ON) or _PUBLISHED.get(path.name, "")


def check_kind(path: Path, config: Mapping[str, Any], judges: str | None, flag: str = "--config.spm.model") -> None:
    """Refuses a model that is known to be trained on another kind of pipeline.

    Args:
      path: folder or file of the model.
      config: its config.
      judges: `Pipeline.kind` of the pipeline whose images it judges; None skips the check.
      flag: flag that names a preference model, for the error message.

    Raises:
      UserError: the kinds differ.
    """
    trained_on = trained_on_kind(path, config)
    if judges and trained_on and judges != trained_on:
        raise UserError(
            f"{path}: this preference model was trained on clean predictions of "
            f"{_KIND_NAMES.get(trained_on, trained_on)}, but config field model is {_KIND_NAMES.get(judges, judges)}: "
            f"name a preference model for it with {flag}"
        )

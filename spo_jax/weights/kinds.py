"""Says what a file or folder is that was named in place of a model, without reading any weights."""

import re
from collections.abc import Iterable
from pathlib import Path

from spo_jax.core import run_files
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json
from spo_jax.weights import store

DIFFUSERS_LORA = "pytorch_lora_weights.safetensors"
PEFT_LORA = "adapter_model.safetensors"
LORA_FILES = (DIFFUSERS_LORA, run_files.LORA, PEFT_LORA)  # in the order in which a folder is searched

LORA = "a LoRA"
LOHA = "a LoHa"
LOKR = "a LoKr"
CLIP = "a CLIP"  # or one of its two encoders
SPM = "a step-aware preference model"
OPEN_CLIP = "a CLIP of open_clip, such as HPSv2"
IMAGE_REWARD = "an ImageReward"
AESTHETIC_HEAD = "the head of LAION's aesthetic predictor"
CHECKPOINT = "a checkpoint of a diffusion model"
AUTOENCODER = "an autoencoder"
NETWORK = "a network of a diffusers folder"
# Patterns of torch names, and what has such names.
_KEYS = (
    (r"\bhada_", LOHA),
    (r"\blokr_", LOKR),
    (r"^lora_|\.lora_(down|up|A|B)\.|\.lora\.(down|up)\.", LORA),
    (r"^(model\.diffusion_model|conditioner\.embedders)\.", CHECKPOINT),
    (r"^(model\.)?t_embedder\.", SPM),
    (r"^(model\.)?(text|vision)_model\.", CLIP),
    (r"^(module\.)?(visual|transformer\.resblocks)\.", OPEN_CLIP),
    (r"^blip\.", IMAGE_REWARD),
    (r"^layers\.\d+\.(weight|bias)$", AESTHETIC_HEAD),
    (r"^(encoder|decoder)\.", AUTOENCODER),
    (r"^(unet\.)?(down_blocks|conv_in)\.", NETWORK),
)


def describe(path: Path) -> str:
    """Describes an existing file or folder in words, such as ``a LoRA`` or ``the folder of a run, whose LoRA is …``."""
    try:
        return _folder(path) if path.is_dir() else _file(path)
    except OSError as error:
        return f"unreadable ({error.strerror})"


def _folder(path: Path) -> str:
    lora = next((path / name for name in LORA_FILES if (path / name).is_file()), None)
    if (path / run_files.CHECKPOINTS).is_dir() or (path / run_files.SUMMARY).is_file():
        trained = {"LoRA": lora, "preference model": path / run_files.SPM, "latent reward model": path / run_files.LRM}
        found = [f", whose {what} is {where}" for what, where in trained.items() if where and where.exists()]
        return "the folder of a run" + "".join(found)
    run, step = run_files.run_of(path)
    if step is not None:
        return f"a checkpoint of the run {run}"
    if (path / "model_index.json").is_file():
        return "a diffusion pipeline"
    if lora is not None:
        return f"the folder of the LoRA {lora}"
    if (path / "unet" / "config.json").is_file() and any(path.glob("state_dict.*")):
        return "a latent reward model"
    if (path / "config.json").is_file():
        return _of_config(path)
    if any((path / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return "a tokenizer"
    return "a folder without a model" if any(path.iterdir()) else "an empty folder"


def _of_config(folder: Path) -> str:
    try:
        config = read_json(folder / "config.json")
    except UserError:
        config = None
    config = config if isinstance(config, dict) else {}
    if "_class_name" in config:
        whole = folder.parent if (folder.parent / "model_index.json").is_file() else None
        return f"{config['_class_name']} of diffusers" + (f", a part of the pipeline {whole}" if whole else "")
    kind = config.get("model_type")
    return "a CLIP or preference model" if kind == "clip" else f"a model of transformers ({kind})"


def _file(path: Path) -> str:
    if path.suffix != ".safetensors":
        return f"a file that ends in {path.suffix}" if path.suffix else "a file"
    try:
        return of_keys(store.read_shapes(path)) or "a safetensors file of unknown content"
    except UserError:
        return "a damaged safetensors file"


def of_keys(keys: Iterable[str]) -> str:
    """Describes weights by their torch names; empty if they are unknown."""
    keys = list(keys)
    return next((what for pattern, what in _KEYS if any(re.search(pattern, key) for key in keys)), "")


def check_file_is(expected: str, path: Path) -> None:
    """Refuses a file of weights that is damaged, or known to be something else, without reading the weights.

    Args:
      expected: as in `check_weights_are`.
      path: the file.

    Raises:
      UserError: the file is no file of weights, is damaged, or holds the weights of something else.
    """
    check_weights_are(expected, store.read_names(path), str(path))


def check_weights_are(expected: str, keys: Iterable[str], where: str) -> None:
    """Refuses weights that are known to be of something else, as those of another reward.

    Args:
      expected: one of the names in this module, such as `CLIP`.
      keys: torch names of the weights.
      where: the file or folder, for the message.

    Raises:
      UserError: they are those of something else.
    """
    found = of_keys(keys)
    if found not in ("", expected):
        raise UserError(f"{where} is {found}: expected {expected}")

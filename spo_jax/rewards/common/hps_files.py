"""The files of the Human Preference Scores: weights, config and tokenizer; imports no jax.

The weights of v2 and v2.1 cannot be told apart but by their file's name, because the two networks have the same shape.
"""

from collections.abc import Mapping
from pathlib import Path

from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object
from spo_jax.data.tokenizer import holds_tokenizer
from spo_jax.nn.clip_config import CLIP_H, CLIPConfig
from spo_jax.nn.open_clip_config import read_open_clip_config
from spo_jax.rewards.common.preference_files import TOKENIZER_FILES, TOKENIZER_NAMES
from spo_jax.rewards.common.published_file import PublishedFile, fetch_tokenizer, local_file
from spo_jax.weights import kinds

CONFIGS = ("ViT-H-14.json", "open_clip_config.json")
TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # of the CLIP from which both versions were trained
VERSIONS: Mapping[str, PublishedFile] = {
    "hpsv2": PublishedFile("xswu/HPSv2", "HPS_v2_compressed.pt", "HPS v2", CONFIGS),
    "hpsv21": PublishedFile("xswu/HPSv2", "HPS_v2.1_compressed.pt", "HPS v2.1", CONFIGS),
}
VARIANTS: Mapping[str, str] = {
    "antialias": "tensors are resized with antialiasing, as the original does with torchvision 0.17 or newer",
    "no_antialias": "tensors are resized without antialiasing, as the original does with torchvision up to 0.16",
    "pil": "images are resized by Pillow, as in OpenAI's CLIP",
}
DEFAULT = "antialias"
PUBLISHED_SIZES = CLIPConfig.from_dict(CLIP_H)


def check_files(source: str, name: str) -> None:
    """Refuses a source that cannot be read, as far as that shows without jax and the network.

    Args:
      source: folder, file, hub id or one file of a hub repository; empty for the published one.
      name: a key of `VERSIONS`.

    Raises:
      UserError: there is no such path, it is something else, or the config beside it is damaged.
    """
    check_version(source, name)
    file = local_file(source, VERSIONS[name])
    if file is not None:
        read_sizes(file)
        kinds.check_file_is(kinds.OPEN_CLIP, file)


def check_version(source: str, name: str) -> None:
    """Refuses a source that has the published name of the other version's file.

    Raises:
      UserError: it has.
    """
    for other, published in VERSIONS.items():
        if other != name and Path(source).name == published.name:
            raise UserError(
                f"{source} has the name of the weights of {published.what}: expected {VERSIONS[name].what}, "
                f"or name it with the reward {other}"
            )


def read_sizes(file: Path) -> CLIPConfig:
    """Reads the config beside a file of weights; without one, it is CLIP ViT-H/14, as published.

    Raises:
      UserError: the config is damaged or not implemented.
    """
    for name in CONFIGS:
        config = file.parent / name
        if config.is_file():
            return read_open_clip_config(read_json_object(config), str(config))
    return PUBLISHED_SIZES


def find_tokenizer(file: Path) -> Path:
    """Returns the folder of the tokenizer beside the weights, or of the published one, which is fetched.

    Raises:
      UserError: it is neither here nor on the hub.
    """
    for folder in (file.parent, file.parent / "tokenizer"):
        if holds_tokenizer(folder):
            return folder
    return fetch_tokenizer(file, TOKENIZER, TOKENIZER_FILES, TOKENIZER_NAMES)

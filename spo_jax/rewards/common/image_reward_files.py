"""The files of ImageReward: its weights, the sizes beside them, and its tokenizer; imports no jax."""

from pathlib import Path

from spo_jax.core.files import read_json_object
from spo_jax.data.bert_tokenizer import is_bert_tokenizer
from spo_jax.nn.blip_config import BertConfig, BLIPConfig, ViTConfig
from spo_jax.rewards.common.published_file import PublishedFile, fetch_tokenizer, find_file, local_file
from spo_jax.weights.kinds import IMAGE_REWARD, check_file_is

_TOKENIZER = "google-bert/bert-base-uncased"
_TOKENIZER_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")
_TEXT_SIZES = "med_config.json"
_VISION_SIZES = "vit_config.json"
PUBLISHED = PublishedFile("THUDM/ImageReward", "ImageReward.pt", "ImageReward", (_TEXT_SIZES, _VISION_SIZES))


def check_files(source: str) -> None:
    """Refuses a source that cannot be read, as far as that shows without jax and the network.

    Args:
      source: as in `spo_jax.rewards.image_reward.load`.

    Raises:
      UserError: a path does not exist, is something else, or a config beside the weights is not one.
    """
    weights = local_file(source, PUBLISHED)
    if weights is not None:
        read_sizes(weights)
        check_file_is(IMAGE_REWARD, weights)


def find_weights(source: str) -> Path:
    """Returns the file of weights of a source, fetched if it is on the hub.

    Raises:
      UserError: the file is missing or something else.
    """
    return find_file(source, PUBLISHED)


def find_tokenizer(weights: Path) -> Path:
    """Returns the folder of the tokenizer that lies beside the weights, or fetches the published one.

    Raises:
      UserError: it is neither here nor on the hub.
    """
    folder = _beside(weights)
    if folder is not None:
        return folder
    return fetch_tokenizer(weights, _TOKENIZER, _TOKENIZER_FILES, "vocab.txt, there or in bert-base-uncased/")


def local_sizes(source: str) -> BLIPConfig:
    """Returns the sizes of a source that is here, and the published ones for a source on the hub."""
    weights = local_file(source, PUBLISHED)
    return BLIPConfig() if weights is None else read_sizes(weights)


def read_sizes(weights: Path) -> BLIPConfig:
    """Reads the sizes beside a file of weights; what is not there has the published sizes.

    Raises:
      UserError: a config is damaged or not implemented.
    """
    text = weights.parent / _TEXT_SIZES
    vision = weights.parent / _VISION_SIZES
    published = BLIPConfig()
    return BLIPConfig(
        vision=ViTConfig.from_dict(read_json_object(vision), str(vision)) if vision.is_file() else published.vision,
        text=BertConfig.from_dict(read_json_object(text), str(text)) if text.is_file() else published.text,
    )


def _beside(weights: Path) -> Path | None:
    """Returns the folder of the tokenizer that lies beside the weights; None if there is none."""
    folders = [weights.parent / name for name in ("bert-base-uncased", "tokenizer", ".")]
    return next((folder for folder in folders if is_bert_tokenizer(folder)), None)

"""The files of rewards that are a CLIP of transformers: which ones are published, and whether a user's are there."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spo_jax.rewards.common.preference_files import (
    TOKENIZER_FILES,
    TOKENIZER_NAMES,
    find_tokenizer,
    local_model,
    read_config,
)
from spo_jax.rewards.common.published_file import fetch_tokenizer
from spo_jax.weights import kinds, store


@dataclasses.dataclass(frozen=True)
class PublishedCLIP:
    """What is published of a reward.

    Attributes:
      model: hub id of the model, which is read where no source is named.
      tokenizer: hub id of a tokenizer for models without one.
      config: content of its ``config.json``, for files without one.
    """

    model: str
    tokenizer: str
    config: Mapping[str, Any]


def check_clip(source: str, published: PublishedCLIP) -> None:
    """Refuses a CLIP that is missing or something else, as far as that shows without jax and the network.

    Args:
      source: folder, weights file, hub id or one file of a hub repository; empty for what is published.
      published: what is published of the reward.

    Raises:
      UserError: there is no such path, or it is not a CLIP.
    """
    path = local_model(source or published.model)
    if path is None:
        return
    read_config(path, published.config)
    file = path / store.find_weights(path, "transformers")[0] if path.is_dir() else path
    if not file.name.endswith(".index.json"):  # which lists several files
        kinds.check_file_is(kinds.CLIP, file)


def clip_tokenizer(path: Path, published: PublishedCLIP) -> Path:
    """Returns the folder of a model's tokenizer: its own, or the published one, which is fetched.

    Raises:
      UserError: it is neither here nor on the hub.
    """
    return find_tokenizer(path) or fetch_tokenizer(path, published.tokenizer, TOKENIZER_FILES, TOKENIZER_NAMES)

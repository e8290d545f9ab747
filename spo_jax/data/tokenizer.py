"""CLIP's tokenizer, which turns prompts into token ids of a fixed length."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Int

# The limit for folders without tokenizer_config.json, for which transformers assumes a practically infinite one (1e30).
CLIP_LENGTH = 77


class Tokenizer:
    """A CLIP tokenizer, read from a folder of diffusers or transformers.

    The folder may be old (vocab.json and merges.txt) or new (tokenizer.json).

    Attributes:
      length: number of token ids per prompt.
    """

    def __init__(self, folder: str | os.PathLike):
        """Loads the tokenizer.

        Args:
          folder: the tokenizer's folder.

        Raises:
          UserError: the folder does not hold a tokenizer that transformers can read.
        """
        folder = Path(folder)
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise UserError(f"{folder}: no tokenizer here: expected tokenizer.json, or vocab.json with merges.txt")
        # On import, transformers reports that it did not find torch, which nothing here needs.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        from transformers import CLIPTokenizer

        try:
            self._tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{folder}: cannot read the tokenizer: {error}") from error
        self.length = min(self._tokenizer.model_max_length, CLIP_LENGTH)

    def __call__(self, prompts: Sequence[str]) -> Int[np.ndarray, "b l"]:
        """Tokenizes prompts, with start and end tokens, padded and truncated to `length`.

        Returns:
          int32 token ids.
        """
        encoded = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.length, return_tensors="np"
        )
        return encoded["input_ids"].astype(np.int32)

    def cut_off(self, prompts: Sequence[str]) -> list[str]:
        """Returns the end of each prompt that does not fit in `length` tokens and is cut off; empty where all fits."""
        encoded = self._tokenizer(list(prompts), return_offsets_mapping=True, verbose=False)
        ends = []
        for prompt, places in zip(prompts, encoded["offset_mapping"], strict=True):
            # The last token that fits is the end token, in place of the token that stands there.
            ends.append(prompt[places[self.length - 1][0] :] if len(places) > self.length else "")
        return ends


class AbstractTokenizer(Tokenizer):
    """A tokenizer of which only `length` is known, for programs that are compiled but not run."""

    def __init__(self, length: int):
        """Sets the number of token ids per prompt."""
        self.length = length

    def __call__(self, prompts: Sequence[str]) -> Int[np.ndarray, "b l"]:
        """Raises a `TypeError`, because an abstract model has no prompts."""
        raise TypeError("an abstract tokenizer has no vocabulary")

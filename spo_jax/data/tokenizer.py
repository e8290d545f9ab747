"""CLIP's tokenizer: prompts to fixed-length token ids."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Int

# Folders without tokenizer_config.json would otherwise have "no" limit (1e30).
CLIP_LENGTH = 77


class Tokenizer:
    """A CLIP tokenizer folder of diffusers or transformers, old (vocab.json, merges.txt) or new (tokenizer.json)."""

    def __init__(self, folder: str | os.PathLike):
        """
        Raises:
          UserError: the folder holds no tokenizer that transformers can read.
        """
        folder = Path(folder)
        if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise UserError(f"{folder}: no tokenizer here (expected tokenizer.json, or vocab.json with merges.txt)")
        # transformers announces on import that it found no torch; nothing here needs it.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        from transformers import CLIPTokenizer

        try:
            self._tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{folder}: cannot read the tokenizer: {error}") from error
        self.length = min(self._tokenizer.model_max_length, CLIP_LENGTH)

    def __call__(self, prompts: Sequence[str]) -> Int[np.ndarray, "b l"]:
        """Token ids with start and end, padded and cut to `length`; int32."""
        encoded = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.length, return_tensors="np"
        )
        return encoded["input_ids"].astype(np.int32)

"""BERT's tokenizer as BLIP uses it: the vocabulary of bert-base-uncased with ``[DEC]`` and ``[ENC]`` at its end."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object
from spo_jax.core.typing import Bool, Int
from spo_jax.data.tokenizer import digest_of

_FILES = ("tokenizer.json", "vocab.txt")


def is_bert_tokenizer(folder: Path) -> bool:
    """Says whether a folder has the files of a BERT tokenizer, as far as their names show."""
    return any((folder / name).is_file() for name in _FILES)


class BertTokenizer:
    """Token ids of a fixed length, with a mask.

    ``[DEC]``, ``[ENC]`` and BERT's own special tokens stand for themselves where a prompt spells them in capitals. No
    id is built in: a vocabulary may have its special tokens anywhere.

    Attributes:
      folder: the folder.
      length: number of token ids per prompt, special tokens included.
      vocabulary: number of token ids; all ids are below it.
    """

    def __init__(self, folder: str | os.PathLike, length: int):
        """Loads the tokenizer.

        Args:
          folder: the tokenizer's folder, with ``vocab.txt`` or ``tokenizer.json``.
          length: number of token ids per prompt.

        Raises:
          UserError: the folder does not hold a tokenizer that transformers can read, or not BERT's.
        """
        self.folder = Path(folder)
        self.length = length
        if not is_bert_tokenizer(self.folder):
            raise UserError(f"{folder}: no tokenizer here: expected {' or '.join(_FILES)} of bert-base-uncased")
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json"):
            if (self.folder / name).exists():
                read_json_object(self.folder / name)
        # On import, transformers reports that it did not find torch, which nothing here needs.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        from transformers import BertTokenizer as Library

        try:
            self._tokenizer = Library.from_pretrained(self.folder, local_files_only=True)
            self._tokenizer.add_special_tokens({"bos_token": "[DEC]"})
            self._tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
            self.vocabulary = 1 + max(self._tokenizer.get_vocab().values())
            ids, mask = self(["a red star", "a red star [ENC]"])
            marks = [self._tokenizer.convert_tokens_to_ids(name) for name in ("[CLS]", "[SEP]", "[ENC]")]
        except (
            Exception
        ) as error:  # transformers and its library in Rust raise many kinds, a plain Exception among them
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{folder}: cannot read the tokenizer: {reason or type(error).__name__}") from error
        # transformers appends BERT's special tokens to a vocabulary without them, which is then not BERT's.
        enclosed = [*ids[1][mask[1]][[0, -1, -2]]] == marks
        if not enclosed or max(*marks[:2], self._tokenizer.unk_token_id) >= self._tokenizer.vocab_size:
            reason = "it has no [CLS], [SEP] and [UNK]"
            raise UserError(f"{folder}: this tokenizer is damaged or not BERT's: {reason}; fetch it again")

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of everything in the folder that decides on token ids; see `digest_of`."""
        return digest_of(self._tokenizer, self.length)

    def check_fits(self, vocabulary: int, where: str) -> None:
        """Checks that a text encoder has an embedding for every token, and no other embeddings.

        Args:
          vocabulary: number of the encoder's token embeddings.
          where: the encoder's weights or config, for the message.

        Raises:
          UserError: the tokenizer belongs to another text encoder.
        """
        if self.vocabulary != vocabulary:
            raise UserError(
                f"{self.folder}: this tokenizer has {self.vocabulary} tokens, [DEC] and [ENC] included, but {where} "
                f"has {vocabulary}: they belong to different models; expected the tokenizer of bert-base-uncased"
            )

    def __call__(self, prompts: Sequence[str]) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """Tokenizes prompts, padded and truncated to `length`.

        Returns:
          int32 token ids, and where they are tokens and not padding.
        """
        encoded = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.length, return_tensors="np"
        )
        return encoded["input_ids"].astype(np.int32), encoded["attention_mask"] != 0

"""CLIP's tokenizer, which turns prompts into token ids of a fixed length."""

import functools
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spo_jax.core.config import shown
from spo_jax.core.errors import UserError
from spo_jax.core.files import read_json_object
from spo_jax.core.typing import Int
from spo_jax.data import bpe_file

# The limit for folders without tokenizer_config.json, for which transformers assumes a practically infinite one (1e30).
CLIP_LENGTH = 77
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
_SHORTEST = 3  # the start token, one of the prompt, and the end token
_MAX_VOCABULARY = 2**22
_IN_WORD = r"[0-9A-Za-zÀ-ӿ'’]"  # Latin, Greek and Cyrillic script, which put spaces between words


class Tokenizer:
    """A CLIP tokenizer, read from a folder of diffusers or transformers.

    The folder may be old (vocab.json and merges.txt) or new (tokenizer.json), or hold OpenAI's file of merges
    (bpe_simple_vocab_16e6.txt.gz).

    Attributes:
      folder: the folder.
      length: number of token ids per prompt.
      vocabulary: number of token ids; all ids are below it.
    """

    def __init__(self, folder: str | os.PathLike):
        """Loads the tokenizer.

        Args:
          folder: the tokenizer's folder.

        Raises:
          UserError: the folder does not hold a tokenizer that transformers can read, or not CLIP's.
        """
        self.folder = Path(folder)
        if not holds_tokenizer(self.folder):
            raise UserError(f"{folder}: no tokenizer here: expected tokenizer.json, or vocab.json with merges.txt")
        limit = _check_files(self.folder)
        try:
            self._tokenizer = _open(self.folder)
            self.vocabulary = 1 + max(self._tokenizer.get_vocab().values())
            self.length = min(limit, CLIP_LENGTH)
            ids = Tokenizer.__call__(self, ["a red star"])[0].tolist()  # whatever a subclass does
            marks = [self._tokenizer.bos_token_id, self._tokenizer.eos_token_id]
        except UserError:
            raise
        # transformers and its library in Rust raise many kinds, a plain Exception among them
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{folder}: cannot read the tokenizer: {reason or type(error).__name__}") from error
        if ids[0] != marks[0] or marks[1] not in ids[1:] or not 0 <= min(ids) <= max(ids) < self.vocabulary:
            reason = "prompts have no start and end token"
            raise UserError(f"{folder}: this tokenizer is damaged or not CLIP's: {reason}; fetch it again")

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of everything in the folder that decides on token ids; see `digest_of`."""
        return digest_of(self._tokenizer, self.length)

    def check_fits(self, vocabulary: int, positions: int, where: str) -> None:
        """Checks that a text encoder has an embedding for every token; others would be silently mistaken for its last.

        Args:
          vocabulary: number of the encoder's token embeddings.
          positions: number of its position embeddings.
          where: the encoder's config, for the message.

        Raises:
          UserError: the tokenizer belongs to another text encoder.
        """
        for found, field, known in (
            (self.vocabulary, "vocab_size", vocabulary),
            (self.length, "max_position_embeddings", positions),
        ):
            if found > known:
                unit = "tokens" if field == "vocab_size" else "tokens per prompt"
                raise UserError(
                    f"{self.folder}: this tokenizer has {found} {unit}, but {where} has {field} = {known}: they belong "
                    "to different models"
                )

    def check_is_of(self, vocabulary: int, positions: int, where: str) -> None:
        """Does what `check_fits` does, and refuses a tokenizer that has fewer tokens than the text encoder knows.

        A pipeline's text encoder may have more embeddings than its tokenizer has tokens; a judge's has as many.

        Raises:
          UserError: the tokenizer belongs to another text encoder.
        """
        self.check_fits(vocabulary, positions, where)
        if self.vocabulary != vocabulary:
            raise UserError(
                f"{self.folder}: this tokenizer has {self.vocabulary} tokens, but {where} has vocab_size = "
                f"{vocabulary}: they belong to different models"
            )

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
        """Returns the end of each prompt that does not fit in `length` tokens and is cut off; empty where all fits.

        An end begins with a whole word, even if the tokens of its beginning fit.
        """
        encoded = self._tokenizer(list(prompts), return_offsets_mapping=True, verbose=False)
        ends = []
        for prompt, places in zip(prompts, encoded["offset_mapping"], strict=True):
            # The last token that fits is the end token, in place of the token that stands there.
            ends.append(prompt[_word_start(prompt, places[self.length - 1][0]) :] if len(places) > self.length else "")
        return ends


def digest_of(tokenizer: Any, length: int) -> str:
    """Returns the SHA-256 of a tokenizer of transformers: its vocabulary, rules, special tokens and length."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    rules = {name: value for name, value in content.items() if name not in ("padding", "truncation")}  # set by calls
    text = json.dumps([rules, tokenizer.special_tokens_map, length], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def holds_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the files of a tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES) or _bpe_file(folder) is not None


def _bpe_file(folder: Path) -> Path | None:
    return min(folder.glob(bpe_file.PATTERN), default=None)


def _open(folder: Path) -> Any:
    """Opens the tokenizer with transformers."""
    # On import, transformers reports that it did not find torch, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import CLIPTokenizer

    if any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    vocabulary, merges = bpe_file.read_bpe_file(_bpe_file(folder))
    return CLIPTokenizer(vocab=vocabulary, merges=merges)


def _word_start(text: str, place: int) -> int:
    """Returns where the word around a place begins, or the place itself if it is in none."""
    if not re.match(_IN_WORD, text[place:]):
        return place
    return re.search(f"{_IN_WORD}*$", text[:place]).start()


def _check_files(folder: Path) -> int:
    """Reads the JSON files of a tokenizer as strictly as all others, and returns its limit of tokens per prompt.

    Raises:
      UserError: a file is not JSON, or holds values of other types or out of range.
    """
    files = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "tokenizer.json")
    content = {name: read_json_object(folder / name) for name in files if (folder / name).exists()}
    tokens = {"vocab.json": content.get("vocab.json")}
    model = content.get("tokenizer.json", {}).get("model")
    if isinstance(model, dict):
        tokens["tokenizer.json: model.vocab"] = model.get("vocab")
    for where, vocabulary in tokens.items():
        ids = vocabulary.values() if isinstance(vocabulary, dict) else () if vocabulary is None else (None,)
        if any(type(number) is not int or not 0 <= number < _MAX_VOCABULARY for number in ids):
            raise UserError(f"{folder}/{where}: expected an object of whole numbers from 0 to {_MAX_VOCABULARY - 1}")
    limit = content.get("tokenizer_config.json", {}).get("model_max_length")
    limit = CLIP_LENGTH if limit is None else limit
    if isinstance(limit, bool) or not isinstance(limit, int | float) or limit < _SHORTEST or limit != int(limit):
        where = f"{folder}/tokenizer_config.json: model_max_length"
        raise UserError(f"{where} = {shown(limit)}: expected a whole number from {_SHORTEST} on")
    return int(min(limit, CLIP_LENGTH))


class AbstractTokenizer(Tokenizer):
    """A tokenizer of which only `length` is known, for programs that are compiled but not run."""

    def __init__(self, length: int):
        """Sets the number of token ids per prompt."""
        self.length = length
        self.vocabulary = 0

    def __call__(self, prompts: Sequence[str]) -> Int[np.ndarray, "b l"]:
        """Raises a `TypeError`, because an abstract model has no prompts."""
        raise TypeError("an abstract tokenizer has no vocabulary")

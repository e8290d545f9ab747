"""The tokenisations with which CLIPs were trained or are scored, where they differ from today's transformers.

All of them cut a text into words, and the words into the byte pairs of one vocabulary. They agree on plain English, but
clean a text in their own ways:

| form | of | cleaning |
|---|---|---|
| ``hf_fast`` | transformers 5, and its fast tokenizers before | Unicode NFC, white space to a space, lower case |
| ``open_clip`` | HPSv2 | ftfy, HTML unescaped twice, white space to a space, lower case; padded with 0 |
| ``openai`` | OpenAI's CLIP, Hessel's CLIPScore | the same with other spellings of the start and end tokens |
| ``hf_slow_ftfy`` | CLIPTokenizer of transformers 4, with ftfy | ftfy, white space to a space, lower case |
| ``hf_slow_noftfy`` | the same without ftfy | BERT's: no control characters, spaces around CJK ones |

ftfy straightens quotes, expands ligatures, makes full-width letters narrow, repairs text that was decoded wrongly and
unescapes HTML where a text has no "<"; so "it’s" is "it" and "'s" with it, and three words without it.

``hf_fast`` is `spo_jax.data.tokenizer.Tokenizer`; the others are an `OriginalTokenizer`.
"""

import dataclasses
import html
import os
import types
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import regex

from spo_jax.core.byte_characters import byte_characters, spell_bytes
from spo_jax.core.errors import UserError
from spo_jax.core.typing import Int
from spo_jax.data.bpe_file import END, START, WORD_END
from spo_jax.data.tokenizer import Tokenizer

HF_FAST = "hf_fast"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

# Ideographs, around which BERT puts spaces. Hangul and kana are not among them.
_CJK = regex.compile(
    r"[\u4E00-\u9FFF\u3400-\u4DBF\U00020000-\U0002A6DF\U0002A700-\U0002B73F\U0002B740-\U0002B81F"
    r"\U0002B820-\U0002CEAF\uF900-\uFAFF\U0002F800-\U0002FA1F]"
)


def open_tokenizer(folder: str | os.PathLike, form: str = HF_FAST) -> Tokenizer:
    """Opens a CLIP tokenizer of any form.

    Args:
      folder: folder with tokenizer.json, with vocab.json and merges.txt, or with bpe_simple_vocab_16e6.txt.gz.
      form: ``hf_fast``, ``open_clip``, ``openai``, ``hf_slow_ftfy`` or ``hf_slow_noftfy``.

    Raises:
      UserError: the folder does not hold a tokenizer of CLIP.
    """
    return Tokenizer(folder) if form == HF_FAST else OriginalTokenizer(folder, form)


# Cleaning


def _collapse(text: str) -> str:
    return regex.sub(r"\s+", " ", text).strip()


def _fix(text: str) -> str:
    import ftfy  # here, because most commands need none of it

    return ftfy.fix_text(text)


def _clean_openai(text: str) -> str:
    return _collapse(html.unescape(html.unescape(_fix(text))).strip()).lower()


def _clean_slow(text: str) -> str:
    return _collapse(_fix(text)).lower()


def _clean_slow_noftfy(text: str) -> str:
    """Does what transformers' BasicTokenizer does.

    The rules of the library in Rust are not the same: it keeps characters that Unicode has not assigned.
    """
    text = "".join(map(_basic_character, text))
    text = unicodedata.normalize("NFC", _CJK.sub(r" \g<0> ", text))
    return " ".join(word.lower() for word in text.split())


def _basic_character(character: str) -> str:
    if character in "\t\n\r":
        return " "
    category = unicodedata.category(character)
    is_removed = character == "\ufffd" or category.startswith("C")
    return "" if is_removed else " " if category == "Zs" else character


@dataclasses.dataclass(frozen=True)
class _Form:
    """How a tokenisation reads a prompt.

    Attributes:
      clean: function that cleans a text.
      start: how the start token is written in a prompt. Elsewhere it is always `START`.
      end: how the end token is written in a prompt.
      is_slow: whether special tokens are cut out before cleaning, and padding is a token; otherwise padding is 0.
    """

    clean: Callable[[str], str]
    start: str = START
    end: str = END
    is_slow: bool = False


FORMS: Mapping[str, _Form] = types.MappingProxyType({
    "open_clip": _Form(_clean_openai, "<start_of_text>", "<end_of_text>"),
    "openai": _Form(_clean_openai),
    "hf_slow_ftfy": _Form(_clean_slow, is_slow=True),
    "hf_slow_noftfy": _Form(_clean_slow_noftfy, is_slow=True),
})  # fmt: skip


class OriginalTokenizer(Tokenizer):
    """A CLIP tokenizer whose ids are those of another code than today's transformers.

    Attributes:
      folder: the folder.
      form: the tokenisation, one of `FORMS`.
      length: number of token ids per prompt.
      vocabulary: number of token ids; all ids are below it.
    """

    def __init__(self, folder: str | os.PathLike, form: str):
        """Loads the tokenizer.

        Args:
          folder: as in `open_tokenizer`.
          form: a key of `FORMS`.

        Raises:
          UserError: the folder does not hold a tokenizer of CLIP.
        """
        super().__init__(folder)
        self.form = form
        self._form = FORMS[form]
        self._bpe = self._tokenizer.backend_tokenizer.model
        _check_bytes(self.folder, self._tokenizer.get_vocab())
        self._start, self._end = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        if not self._form.is_slow and self._end != self.vocabulary - 1:
            # The network is read at the largest id, which is the end token in every vocabulary of these codes.
            raise UserError(f"{folder}: this tokenizer is not CLIP's: its end token is not the last of the vocabulary")
        self._pad = self._tokenizer.pad_token_id if self._form.is_slow else 0
        # Tokens that are recognised where they stand as a word of their own, and those that are cut out of any text.
        self._marks = {self._form.start: self._start, self._form.end: self._end}
        marks = "|".join(map(regex.escape, self._marks))
        self._words = regex.compile(f"{marks}|{_WORDS}", regex.IGNORECASE)
        names = self._tokenizer.all_special_tokens if self._form.is_slow else []
        self._special = dict(zip(names, self._tokenizer.convert_tokens_to_ids(names), strict=True))

    def __call__(self, prompts: Sequence[str]) -> Int[np.ndarray, "b l"]:
        """Tokenizes prompts, with start and end tokens, padded and truncated to `length`.

        Returns:
          int32 token ids.
        """
        ids = np.full((len(prompts), self.length), self._pad, np.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            inner = [token for _, tokens in self._encode(prompt) for token in tokens][: self.length - 2]
            row[: len(inner) + 2] = [self._start, *inner, self._end]
        return ids

    def cut_off(self, prompts: Sequence[str]) -> list[str]:
        """Returns the words of each prompt that do not fit in `length` tokens; empty where all fits.

        The words are those of the cleaned prompt, with a space between them. A word of which a part fits is the first.
        """
        ends = []
        for prompt in prompts:
            room = self.length - 2
            rest = []
            for word, tokens in self._encode(prompt):
                room -= len(tokens)
                rest += [word] if room < 0 else []
            ends.append(" ".join(rest))
        return ends

    def _encode(self, prompt: str) -> Iterator[tuple[str, list[int]]]:
        """Yields every word of a prompt and its token ids, without the start and end tokens around it."""
        for part in self._parts(prompt):
            if part in self._special:
                yield part, [self._special[part]]
                continue
            for word in self._words.findall(self._form.clean(part)):
                if word in self._marks:
                    yield word, [self._marks[word]]
                else:
                    yield word, [token.id for token in self._bpe.tokenize(spell_bytes(word))]

    def _parts(self, prompt: str) -> list[str]:
        """Cuts special tokens out of a prompt that is not cleaned yet."""
        if not self._special:
            return [prompt]
        longest_first = sorted(map(regex.escape, self._special), key=len, reverse=True)
        return regex.split(f"({'|'.join(longest_first)})", prompt)


def _check_bytes(folder: Path, vocabulary: Mapping[str, int]) -> None:
    """Refuses a vocabulary without a token for every byte, inside and at the end of a word.

    Raises:
      UserError: tokens are missing.
    """
    needed = [character + end for end in ("", WORD_END) for character in byte_characters()]
    missing = sum(token not in vocabulary for token in needed)
    if missing:
        raise UserError(f"{folder}: this tokenizer is damaged or not CLIP's: {missing} of its 512 bytes are no tokens")

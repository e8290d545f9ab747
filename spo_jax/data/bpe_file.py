"""OpenAI's form of CLIP's vocabulary, ``bpe_simple_vocab_16e6.txt.gz``, which holds the merges alone."""

import gzip
import zlib
from pathlib import Path

from spo_jax.core.byte_characters import byte_characters
from spo_jax.core.errors import UserError

PATTERN = "bpe_simple_vocab*.txt.gz"
START = "<|startoftext|>"
END = "<|endoftext|>"
WORD_END = "</w>"
_MERGES = 49152 - 256 - 2  # the published file lists five times as many, and CLIP was trained with the first ones
_MAX_BYTES = 2**25  # of the unpacked file; the published one has 3.2 MB

Merges = list[tuple[str, str]]


def read_bpe_file(path: Path) -> tuple[dict[str, int], Merges]:
    """Reads a vocabulary and its merges.

    The tokens are 256 characters for bytes, the same at the end of a word, the merges in order, start and end. A line
    is a merge, but for the first, which is a title; the original readers take an empty line at the end of a short file
    for a token, which shifts start and end, so here such a line is nothing.

    Args:
      path: the file.

    Returns:
      (token -> id, merges).

    Raises:
      UserError: the file cannot be read, is damaged or holds something else.
    """
    merges = []
    for number, line in enumerate(_read_lines(path)[1 : _MERGES + 1], 2):
        pair = tuple(line.split())
        if len(pair) != 2:
            raise UserError(f"{path}, line {number}: expected a merge, which is two tokens, found {len(pair)}")
        merges.append(pair)
    characters = byte_characters()
    tokens = [*characters, *(character + WORD_END for character in characters), *map("".join, merges), START, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def _read_lines(path: Path) -> list[str]:
    try:
        with gzip.open(path) as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise UserError(f"{path}: expected a vocabulary of CLIP, which has at most {_MAX_BYTES} bytes unpacked")
        return content.decode().rstrip("\n").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:  # gzip.BadGzipFile is an OSError
        raise UserError(f"cannot read {path} as a gzipped vocabulary: {error}; fetch it again") from error

"""The lines of text files that users bring: cut at newlines only, numbered as an editor does, and read as UTF-8."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from spo_jax.core.errors import UserError

_MARK = b"\xef\xbb\xbf"  # the byte-order mark that editors on Windows write


def numbered_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yields the lines that are not blank, without their ends, and their numbers from 1 on, which count blank ones.

    `str.splitlines` would also cut at form feeds, U+0085 and U+2028, which are characters of prompts, and which JSON
    allows in strings.

    Args:
      lines: a file that is open for reading bytes, or an `io.BytesIO`.
    """
    for number, line in enumerate(lines, 1):
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if number == 1:
            line = line.removeprefix(_MARK)
        if line.strip():
            yield number, line


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields the `numbered_lines` of a file, one at a time.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            yield from numbered_lines(file)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def decoded_lines(content: bytes, name: str) -> Iterator[str]:
    """Yields all lines of a file, blank ones too, with their ends.

    Args:
      content: the bytes of the file, UTF-8 with or without a byte-order mark.
      name: the file, for messages.

    Raises:
      UserError: a line is not UTF-8.
    """
    for number, line in enumerate(io.BytesIO(content), 1):
        yield text_of(line.removeprefix(_MARK) if number == 1 else line, f"{name}, line {number}")


def text_of(line: bytes, where: str) -> str:
    """Decodes a line.

    Args:
      line: the line.
      where: file and number of the line, for the message.

    Raises:
      UserError: it is not UTF-8.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise UserError(
            f"{where}: byte {error.start + 1} (0x{byte:02x}) is not UTF-8: save the file as UTF-8"
        ) from error

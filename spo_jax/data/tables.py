"""The rows of CSV and TSV files that users bring: strictly read, and numbered as an editor numbers their lines."""

import csv
import io
from collections.abc import Iterator

from spo_jax.core.errors import UserError
from spo_jax.data.lines import decoded_lines, numbered_lines, text_of

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def table_rows(content: bytes, name: str, separator: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Yields the rows that are not blank, each with the number of the line in which it begins.

    Args:
      content: the bytes of the file, UTF-8 with or without a byte-order mark.
      name: the file, for messages.
      separator: what stands between two fields, a key of `SEPARATORS`.

    Raises:
      UserError: a line is not UTF-8, or quotes do not fit.
    """
    reader = csv.reader(decoded_lines(content, name), delimiter=separator, strict=True)
    end = 0
    try:
        for row in reader:
            begin = end + 1
            end = reader.line_num
            if any(row):
                yield begin, row
    except csv.Error as error:
        raise UserError(f"{name}, line {end + 1}: not CSV: {error}") from error


def tab_rows(content: bytes, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows of a file with tabs, in which quotes are characters like any other: a line is a row.

    Spreadsheets export such files, and PartiPrompts is one: "The words "Fly an airplane" are written on the wall".

    Args:
      content: the bytes of the file, UTF-8 with or without a byte-order mark.
      name: the file, for messages.

    Raises:
      UserError: a line is not UTF-8.
    """
    for number, line in numbered_lines(io.BytesIO(content)):
        yield number, text_of(line, f"{name}, line {number}").split("\t")

"""Numbers, names and differences in words, for messages, the terminal and the report."""

import math
import re
from collections.abc import Mapping, Sequence

_SHOWN = 3  # differences that a message names
_TIMESTEP = re.compile(r"t0*(\d+)")
_SIZES = ("KiB", "MiB", "GiB", "TiB", "PiB")
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))  # of durations, with their seconds


def counted(number: int, noun: str) -> str:
    """Returns a number and its noun, in the plural unless there is one of it: ``1 image``, ``8 batches``."""
    plural = "es" if noun.endswith(("ch", "sh", "s", "x")) else "s"
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{plural}"


def size(count: int | float) -> str:
    """Writes a number of bytes for people: "312 bytes", "4.3 GiB", "17 MiB"."""
    if abs(count) < 2**10:
        return counted(round(count), "byte")
    unit = min(int(math.log2(abs(count)) // 10), len(_SIZES))
    number = count / 2 ** (10 * unit)
    if abs(number) >= 1023.5 and unit < len(_SIZES):  # would be written as 1024
        unit, number = unit + 1, number / 2**10
    places = 0 if abs(number) >= 9.95 or number == round(number) else 1
    return f"{number:.{places}f} {_SIZES[unit - 1]}"


def duration(seconds: int | float) -> str:
    """Writes a duration for people: "0.4 s", "42 s", "5 min 3 s", "1 h 12 min", "2 d 5 h"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    left = round(seconds)
    if left >= 3600:
        left = round(seconds / 60) * 60
    if left >= 86400:
        left = round(seconds / 3600) * 3600
    parts = []
    for unit, length in _UNITS:
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts)


def excerpt(text: str, length: int = 60) -> str:
    """Returns a text in quotes, cut to a length and with its special characters escaped, so that it is one line."""
    return repr(text if len(text) <= length else f"{text[:length]}…")


def differences(first: Mapping[str, str], second: Mapping[str, str], places: tuple[str, str]) -> str:
    """Lists what differs between two mappings; empty if nothing does.

    Args:
      first: texts by name.
      second: texts by name.
      places: where the two are, in words; ``beta is 5 in process 0 and 10 in process 1``.
    """
    differing = [name for name in sorted(first | second) if first.get(name) != second.get(name)]
    shown = "; ".join(
        f"{name} is {first.get(name, 'absent')} {places[0]} and {second.get(name, 'absent')} {places[1]}"
        for name in differing[:_SHOWN]
    )
    more = len(differing) - _SHOWN
    return f"{shown}; {more} more differ" if more > 0 else shown


def readable(name: str) -> str:
    """Writes the name of a score or curve for people: ``out_of_range`` as "out of range", ``t0501`` as "t = 501"."""
    parts = [_TIMESTEP.sub(r"t = \1", part) if _TIMESTEP.fullmatch(part) else part for part in name.split("/")]
    text = ": ".join(part.replace("_", " ") for part in parts)
    return text.replace(": t = ", " at t = ")


def listed(items: Sequence[str]) -> str:
    """Joins items as in a sentence: "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table for the terminal, indented, with its columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [f"  {'  '.join(map(str.ljust, row, widths))}".rstrip() for row in rows]


def with_error(value: float, error: float | None, digits: int = 2, sign: str = "") -> str:
    """Writes a value with its standard error, both to the same place: "0.115 ± 0.009".

    Args:
      value: the value; four significant digits are written if there is no error to round it by.
      error: its standard error; None if there is none.
      digits: significant digits of the error.
      sign: "+" to write the sign of positive values as well.
    """
    if error is None or not math.isfinite(error) or not math.isfinite(value):
        return f"{value:{sign}.4g}"
    if error == 0:
        return f"{value:{sign}.3g} ± 0"
    # Rounded first, because 0.0096 to one digit is 0.01, which has one place less.
    rounded = float(f"{error:.{digits - 1}e}")
    places = max(0, digits - 1 - math.floor(math.log10(rounded)))
    return f"{value:{sign}.{places}f} ± {rounded:.{places}f}"

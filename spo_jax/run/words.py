"""Numbers and names in words: scores for the terminal, the verdict and the report."""

import math
import re
from collections.abc import Sequence

_TIMESTEP = re.compile(r"t0*(\d+)")


def readable(name: str) -> str:
    """Writes the name of a score or curve for people: ``out_of_range`` as "out of range", ``t0501`` as "t = 501"."""
    parts = [_TIMESTEP.sub(r"t = \1", part) if _TIMESTEP.fullmatch(part) else part for part in name.split("/")]
    text = ": ".join(part.replace("_", " ") for part in parts)
    return text.replace(": t = ", " at t = ")


def listed(items: Sequence[str]) -> str:
    """Joins items as in a sentence: "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


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

"""How a noisy curve has moved so far: its latest values against its first ones, for the progress bar."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

FIRST = 5  # number of batches at the start that later ones are compared with
LATEST = 10  # number of latest batches that are averaged


class Trend(NamedTuple):
    """A curve at present.

    Attributes:
      now: mean of the latest values; NaN if there are none.
      change: what has been added to the mean of the first values; None while there are no others.
    """

    now: float
    change: float | None

    def shown(self, form: str = ".3g") -> str:
        """Returns both as text, such as ``4.21 (+0.52)``.

        Args:
          form: format of a number, as ``.1%``.
        """
        return f"{self.now:{form}}" + ("" if self.change is None else f" ({self.change:+{form}})")


def trend(rows: Sequence[Mapping[str, int | float | None]], name: str) -> Trend:
    """Compares the latest values of a curve with its first ones.

    Args:
      rows: rows of all batches so far; some may have no value, or None.
      name: name of a curve; or of a group of curves, such as ``judge_score``, of which each row's mean is taken.
    """
    first = _some(enumerate(rows), name, FIRST)
    if not first:
        return Trend(math.nan, None)
    last_of_first = max(first)
    later = ((index, rows[index]) for index in range(len(rows) - 1, last_of_first, -1))
    latest = _some(later, name, LATEST)
    begin = statistics.fmean(first.values())
    if not latest:
        return Trend(begin, None)
    now = statistics.fmean(latest.values())
    return Trend(now, now - begin)


def _some(rows: Iterable[tuple[int, Mapping[str, int | float | None]]], name: str, count: int) -> dict[int, float]:
    """Returns the values of the first rows that have one, by the rows' numbers."""
    found: dict[int, float] = {}
    for index, row in rows:
        if len(found) == count:
            break
        values = [value for key, value in row.items() if value is not None and key.partition("/")[0] == name]
        if values:
            found[index] = statistics.fmean(values)
    return found

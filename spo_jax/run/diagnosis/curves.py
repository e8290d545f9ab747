"""The curves of a run, as rules read them: means, and whether a curve moves by more than its noise."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from spo_jax.core.words import with_error
from spo_jax.run.trend import FIRST, LATEST
from spo_jax.run.verdict import NOISE, Score

Row = Mapping[str, int | float | None]
FEW = 6  # points of a curve; of fewer, neither its noise nor its direction is known
_TIMESTEP = re.compile(r"t(\d+)")


class Change(NamedTuple):
    """How far a curve has moved from its first to its last point along the straight line that fits it best.

    Attributes:
      total: the change; 0 if the curve has too few points.
      error: its standard error from the scatter about the line; infinite if the curve has too few points.
    """

    total: float
    error: float

    @property
    def rises(self) -> bool:
        """Whether it rises by more than its noise."""
        return self.total > NOISE * self.error

    @property
    def falls(self) -> bool:
        """Whether it falls by more than its noise."""
        return self.total < -NOISE * self.error

    def __str__(self) -> str:
        return with_error(self.total, self.error, digits=1, sign="+")


@dataclasses.dataclass(frozen=True)
class Curve:
    """One curve, without the batches at which it has no finite value.

    Attributes:
      steps: numbers of the batches.
      values: its values there.
    """

    steps: Sequence[int]
    values: Sequence[int | float]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def first(self) -> float:
        """Mean of the first values, as on the progress bar; NaN without any."""
        return _mean(self.values[:FIRST])

    @property
    def latest(self) -> float:
        """Mean of the latest values, as on the progress bar; NaN without any."""
        return _mean(self.values[-LATEST:])

    @property
    def mean(self) -> float:
        """Mean of all values; NaN without any."""
        return _mean(self.values)

    def half(self) -> "Curve":
        """Returns the second half, in which a run has had time to learn."""
        begin = len(self) // 2
        return Curve(self.steps[begin:], self.values[begin:])

    @property
    def mean_error(self) -> float:
        """Standard error of `mean`, if the values are independent; infinite for fewer than two."""
        return float(np.std(self.values, ddof=1) / math.sqrt(len(self))) if len(self) > 1 else math.inf

    def change(self) -> Change:
        """Fits a line by least squares."""
        n = len(self)
        if n < FEW:
            return Change(0.0, math.inf)
        x = np.linspace(-0.5, 0.5, n)
        y = np.asarray(self.values, np.float64)
        slope = (x @ (y - y.mean())) / (x @ x)
        rest = y - y.mean() - slope * x
        return Change(float(slope), float(np.sqrt((rest @ rest) / (n - 2) / (x @ x))))


@dataclasses.dataclass(frozen=True)
class Curves:
    """All that the rules know of a run.

    Attributes:
      rows: rows as `spo_jax.run.metrics.read_metrics` returns them.
      settings: the settings as nested dicts; empty if they are not known.
      scores: the entry ``scores`` of ``summary.json``, once the run is finished.
      lower_is_better: names of scores that improve by falling; None if that is not known.
      judge_scores: names of scores from which the run learns; None if that is not known.
    """

    rows: Sequence[Row]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scores: Mapping[str, Score] = dataclasses.field(default_factory=dict)
    lower_is_better: Sequence[str] | None = None
    judge_scores: Sequence[str] | None = None

    @property
    def batches(self) -> int:
        """The number of batches that were trained; row 0 is measured before."""
        return sum(row["step"] > 0 for row in self.rows)

    def curve(self, name: str) -> Curve:
        """Returns one curve, such as ``loss`` or ``ratio/win``; without points if there is none of this name."""
        found = [(row["step"], row[name]) for row in self.rows if _is_finite(row.get(name))]
        return Curve([step for step, _ in found], [value for _, value in found])

    def mean(self, group: str) -> Curve:
        """Returns the mean of the curves of a group, such as ``judge_score``, at every batch that has any of them."""
        steps, values = [], []
        for row in self.rows:
            here = [value for name, value in row.items() if name.partition("/")[0] == group and _is_finite(value)]
            if here:
                steps.append(row["step"])
                values.append(_mean(here))
        return Curve(steps, values)

    def names(self, prefix: str) -> list[str]:
        """Returns the names of all curves that begin so, in order."""
        return sorted({name for row in self.rows for name in row if name.startswith(prefix)})

    def timesteps(self, group: str) -> dict[int, Curve]:
        """Returns the curves of a group by timestep, ``GROUP/t0501``, from low to high."""
        found = {}
        for name in self.names(f"{group}/"):
            if match := _TIMESTEP.fullmatch(name.partition("/")[2]):
                found[int(match[1])] = self.curve(name)
        return dict(sorted(found.items()))

    def setting(self, name: str, default: Any) -> Any:
        """Returns the value of a setting, such as ``spo.threshold``; the default if it is not known."""
        value: Any = self.settings
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return default if value is None else value


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _mean(values: Sequence[int | float]) -> float:
    return sum(values) / len(values) if values else math.nan

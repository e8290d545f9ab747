"""What a look saw, as values in memory and as a row of the curves."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from spo_jax.run.guard.rule import Values

# Beginnings of the names of curves; what else begins with the last of them is a held-out score.
TRAINED, SIGN, CHANGE, HELD_OUT = "guard_trained_", "guard_sign_", "guard_change/", "guard_"
WORSE, BEST = "guard_worse_looks", "guard_best_batch"


class Measured(NamedTuple):
    """Scores of the images of a look, in their order.

    Attributes:
      trained: scores that the run learns from; empty if it learns from none, or from one that images do not have.
      held_out: scores that it does not learn from.
      signs: signs of hacking, as `spo_jax.core.signs.image_signs` returns them.
      lower_is_better: names of held-out scores that improve by falling.
    """

    trained: Values
    held_out: Values
    signs: Values
    lower_is_better: Sequence[str] = ()

    @property
    def is_finite(self) -> bool:
        """Whether all scores are finite, so that they can be compared."""
        return all(np.isfinite(values).all() for values in [*self.trained.values(), *self.held_out.values()])

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values, from which `from_json` makes the same bits."""
        return {
            "trained": _lists(self.trained),
            "held_out": _lists(self.held_out),
            "signs": _lists(self.signs),
            "lower_is_better": list(self.lower_is_better),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Measured":
        """Reads what `to_json` returned."""
        parts = (raw["trained"], raw["held_out"], raw["signs"])
        arrays = ({name: np.asarray(values, np.float64) for name, values in part.items()} for part in parts)
        return cls(*arrays, tuple(raw["lower_is_better"]))


@dataclasses.dataclass(frozen=True)
class Look:
    """One look, as the curves have it.

    Attributes:
      batch: number of batches before it; 0 is before training.
      trained: mean of each score that the run learns from.
      held_out: mean of each other score.
      signs: mean of each sign.
      rise: change of the trained scores since the best look before this one, in standard errors; None if unknown.
      gain: change of the held-out scores together since then, in standard errors; None if unknown.
      limit: standard errors by which they have to fall.
      worse: number of worse looks in a row, this one included.
      best: batch of the best look so far by the held-out scores, this one included.
    """

    batch: int
    trained: Mapping[str, float]
    held_out: Mapping[str, float]
    signs: Mapping[str, float]
    rise: float | None
    gain: float | None
    limit: float
    worse: int
    best: int

    def row(self) -> dict[str, float]:
        """Returns its part of the batch's row."""
        change = {"trained": self.rise, "held_out": self.gain, "limit": -self.limit}
        return {
            **_prefixed(TRAINED, self.trained),
            **_prefixed(HELD_OUT, self.held_out),
            **_prefixed(SIGN, self.signs),
            **_prefixed(CHANGE, {name: value for name, value in change.items() if _is_finite(value)}),
            WORSE: self.worse,
            BEST: self.best,
        }

    @classmethod
    def from_row(cls, row: Mapping[str, int | float | None]) -> "Look | None":
        """Reads a row with its ``step``; returns None if no look was taken there."""
        if row.get(WORSE) is None or row.get(BEST) is None:
            return None
        parts: dict[str, dict[str, float]] = {TRAINED: {}, SIGN: {}, CHANGE: {}, HELD_OUT: {}}
        for name, value in row.items():
            prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
            if prefix is not None and name not in (WORSE, BEST):
                parts[prefix][name.removeprefix(prefix)] = math.nan if value is None else float(value)
        change = parts[CHANGE]
        return cls(
            int(row["step"]),
            parts[TRAINED],
            parts[HELD_OUT],
            parts[SIGN],
            change.get("trained"),
            change.get("held_out"),
            -change.get("limit", -math.inf),
            int(row[WORSE]),
            int(row[BEST]),
        )


def looks_of(rows: Sequence[Mapping[str, int | float | None]]) -> list[Look]:
    """Returns the looks among the rows of a run that have the scores of the latest one, in order.

    A run may be resumed with other rewards, after which its earlier looks are not compared.
    """
    looks = [look for look in map(Look.from_row, rows) if look is not None]
    return [
        look
        for look in looks
        if look.trained.keys() >= looks[-1].trained.keys() and look.held_out.keys() >= looks[-1].held_out.keys()
    ]


def means(values: Values) -> dict[str, float]:
    """Returns the mean of each score."""
    return {name: float(np.mean(of, dtype=np.float64)) for name, of in values.items()}


def _lists(values: Values) -> dict[str, list[float]]:
    return {name: np.asarray(of, np.float64).tolist() for name, of in values.items()}


def _prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in values.items()}


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)

"""The guard of a run: takes looks, remembers the best one, and says when a run should end."""

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, NamedTuple

from absl import logging

from spo_jax.parallel.agreement import decided
from spo_jax.run.guard.look import Look, Measured, means
from spo_jax.run.guard.rule import MOST, gains, in_errors, limit
from spo_jax.run.guard.sentences import alarm_of, outcome, sentence


@dataclasses.dataclass(frozen=True)
class Plan:
    """When a guard looks, and what it does.

    Attributes:
      mode: whether an alarm is only told, or ends the run.
      every: batches between two looks (0: only after the last batch).
      in_a_row: worse looks in a row that are an alarm.
      images: number of images of a look.
      about: JSON values on which the images and scores of a look depend; looks that differ in one are not compared.
    """

    mode: Literal["warn", "stop"]
    every: int
    in_a_row: int
    images: int
    about: Mapping[str, Any]


class _Best(NamedTuple):
    """A look with the scores of its images."""

    batch: int
    measured: Measured

    def to_json(self) -> dict[str, Any]:
        return {"batch": self.batch, **self.measured.to_json()}


def _best(raw: Mapping[str, Any] | None) -> _Best | None:
    return raw and _Best(raw["batch"], Measured.from_json(raw))


class Guard:
    """Takes looks and applies the rule of `spo_jax.run.guard.rule` to them.

    Every process of a run has one, and all of them decide alike, by the scores that process 0 has measured.

    Args:
      plan: when to look, and what to do.
      measure: function of (number of batches, state) that draws the images of a look and scores them.

    Attributes:
      looks: the looks so far, beginning with the one before training.
      kept: batch of the best look after training began, whose checkpoint is kept; None before there is one.
      seconds: seconds that looks took, of a resumed run since it was resumed. Images that the evaluation has drawn for
        itself are not counted.
    """

    def __init__(self, plan: Plan, measure: Callable[[int, Any], Measured]):
        self.plan = plan
        self.looks: list[Look] = []
        self.seconds = 0.0
        self._measure = measure
        self._total = 0
        self._reference: _Best | None = None  # the best look, from which changes are counted
        self._kept: _Best | None = None  # the same, unless that is the look before training, which has no checkpoint
        self._before: int | None = None  # the batch that was kept before; see `preserved`

    @property
    def kept(self) -> int | None:
        """Batch of the best look after training began."""
        return self._kept and self._kept.batch

    @property
    def preserved(self) -> Collection[int]:
        """Batches whose checkpoints must not be removed: the best one's, and the one's that was best before it.

        Until the checkpoint of a new best look is complete, a run that is killed resumes from one that names the other.
        """
        return [batch for batch in (self.kept, self._before) if batch is not None]

    @property
    def ends(self) -> bool:
        """Whether the run should end, because the latest look is an alarm."""
        return self.plan.mode == "stop" and bool(self.looks) and self.looks[-1].worse >= self.plan.in_a_row

    def begin(self, state: Any, total: int) -> dict[str, float]:
        """Takes the look before training, and returns its part of the row.

        Args:
          state: the state before training, also if the run is resumed.
          total: number of batches of the whole run.
        """
        self._total = total
        if self._limit >= MOST:
            logging.warning(
                "guard: of %d images no fall is beyond noise, so there will be no alarm: raise eval.guard_images and "
                "eval.images",
                self.plan.images,
            )
        return self.look(0, state)

    def is_due(self, batch: int) -> bool:
        """Whether a look is due after this number of batches."""
        return batch == self._total or (self.plan.every > 0 and batch % self.plan.every == 0)

    def misses(self, batch: int) -> bool:
        """Whether a resumed run lacks the look after its latest batch, for which there was no time."""
        return batch > 0 and self.is_due(batch) and self.looks[-1].batch < batch

    def look(self, batch: int, state: Any) -> dict[str, float]:
        """Takes a look, tells an alarm, and returns the look's part of the batch's row."""
        begin = time.perf_counter()
        measured = self._measure(batch, state)
        self.seconds += time.perf_counter() - begin
        measured = Measured.from_json(decided(measured.to_json))
        look = self._compared(batch, measured)
        self.looks.append(look)
        if look.worse == self.plan.in_a_row and look.gain is not None:
            logging.warning("guard: %s", sentence(*alarm_of(self.looks, self.plan.in_a_row)))
        return look.row()

    def _compared(self, batch: int, now: Measured) -> Look:
        """Compares a look with the best one, and remembers it if it is better."""
        reference, worse = self._reference, self.looks[-1].worse if self.looks else 0
        rise = gain = None
        if not now.is_finite:
            logging.warning("guard: a score after batch %d is not finite, so this look is not compared", batch)
        elif reference is None:
            self._reference = _Best(batch, now)
            self._kept = self._reference if batch else None
        else:
            gain = self._gain(now, reference)
            if now.trained:
                rise = in_errors(gains(now.trained, reference.measured.trained))
            worse = worse + 1 if gain < -self._limit else 0
            self._keep_better(_Best(batch, now), gain)
        best = self._reference.batch if self._reference else batch
        means_of = [means(part) for part in (now.trained, now.held_out, now.signs)]
        return Look(batch, *means_of, rise, gain, self._limit, worse, best)

    def _keep_better(self, now: _Best, gain: float) -> None:
        better = gain > 0
        if better:
            self._reference = now
        if better or self._kept is None or self._gain(now.measured, self._kept) > 0:
            self._before, self._kept = self.kept, now

    def _gain(self, now: Measured, best: _Best) -> float:
        return in_errors(gains(now.held_out, best.measured.held_out, now.lower_is_better))

    @property
    def _limit(self) -> float:
        every = self.plan.every or self._total
        return limit(self.plan.images, -(-self._total // every) if every else 1)

    # What a resumed run has of its guard

    def saved(self) -> dict[str, Any]:
        """Returns all that the guard remembers, as JSON values, for the checkpoint of the latest batch."""
        return {
            "about": dict(self.plan.about),
            "looks": [{"step": look.batch, **look.row()} for look in self.looks],
            "reference": self._reference and self._reference.to_json(),
            "kept": self._kept and self._kept.to_json(),
            "before": self._before,
            "stopped": self.ends,
        }

    def resume(self, saved: Mapping[str, Any] | None, checkpoints: Collection[int]) -> None:
        """Continues from what `saved` returned; if that is of other images, the look before training is all there is.

        Args:
          saved: the guard's part of the checkpoint; None if it has none.
          checkpoints: batches of the checkpoints that are there.
        """
        if saved is None or saved["about"] != dict(self.plan.about):
            logging.warning("guard: the earlier looks of this run are of other images or scores, or there are none")
            return
        self.looks = [Look.from_row(row) for row in saved["looks"]]
        self._reference = _best(saved["reference"])
        self._kept = _best(saved["kept"])
        self._before = saved["before"]
        if self.kept is not None and self.kept not in checkpoints:
            logging.warning("guard: the checkpoint of batch %d, the best so far, is no longer there", self.kept)
            self._kept = None

    def summary(self, exported: int, done: int) -> dict[str, Any]:
        """Returns the guard's entry of ``summary.json``.

        Args:
          exported: batch of the weights that were exported.
          done: number of batches that were trained.
        """
        return {
            "text": outcome(self.looks, self.plan.in_a_row, done if self.ends else None, exported),
            "mode": self.plan.mode,
            "images": self.plan.images,
            "in_a_row": self.plan.in_a_row,
            "limit": self._limit,
            "stopped_batch": done if self.ends else None,
            "best_batch": self.looks[-1].best,
            "kept_batch": self.kept,
            "exported_batch": exported,
            "looks": [{"step": look.batch, **look.row()} for look in self.looks],
        }

"""Scores of the images of a split's rows, kept beside it: a command that was stopped does not compute them again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Float
from spo_jax.data.array_file import ArrayFile, Writer
from spo_jax.data.preferences.check import Pair

FILE = "scores.npy"


@runtime_checkable
class PairScorer(Protocol):
    """Scores the images of pairs, as `spo_jax.work.prepare` makes it of rewards.

    Attributes:
      identity: everything that decides on the scores besides images and prompts, as JSON.
      pairs_at_a_time: number of pairs that it scores best together.
    """

    identity: Mapping[str, Any]
    pairs_at_a_time: int

    def __call__(self, pairs: Sequence[Pair]) -> Float[np.ndarray, "n c 2"]:
        """Returns the scores of both images by the columns of the rule, of which a higher one is better."""
        ...


class KeptScores:
    """A context manager that gives the scores of rows in order; those that are on disk are not computed again.

    Args:
      folder: folder for the scores of this split and nothing else.
      rows: number of rows of the split; rejected ones have the score NaN.
      columns: names of the scores.
      scorer: what computes them.
      bound: what else determines them, by readable names.

    Raises:
      UserError: the folder holds scores of other rows or by other rewards, or cannot be written.
    """

    def __init__(
        self, folder: Path, rows: int, columns: Sequence[str], scorer: PairScorer, bound: Mapping[str, Any]
    ):  # fmt: skip
        bound = {"columns": list(columns), "rewards": scorer.identity, **bound}
        file = ArrayFile(folder / FILE, (rows, len(columns), 2), np.dtype(np.float32), bound)
        self._columns = columns
        self._scorer = scorer
        self._writer = Writer(file)
        self._known = file.first(self._writer.done)
        self._row = 0

    def __enter__(self) -> "KeptScores":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.__exit__(kind, error, trace)
        if not self._writer.done:  # a card without rows would only stand in the way of another rule
            for path in (self._writer.file.part, self._writer.file.card):
                path.unlink(missing_ok=True)

    def next(self, results: Sequence[Pair | str]) -> Float[np.ndarray, "n c 2"]:
        """Returns the scores of the next rows.

        Args:
          results: their pairs, or the reasons why they were rejected.

        Raises:
          UserError: a score is not finite, or the disk is full; or as the scorer raises it.
        """
        known = self._known[self._row : self._row + len(results)]
        self._row += len(results)
        missing = results[len(known) :]
        if not missing:
            return known
        scores = np.full((len(missing), len(self._columns), 2), np.nan, np.float32)
        accepted = [index for index, result in enumerate(missing) if isinstance(result, Pair)]
        if accepted:
            scores[accepted] = self._scorer([missing[index] for index in accepted])
        self._check_finite(scores, accepted, self._row - len(missing))
        self._writer.append(scores)
        return np.concatenate([known, scores])

    def _check_finite(self, scores: Float[np.ndarray, "n c 2"], accepted: Sequence[int], start: int) -> None:
        wrong = [index for index in accepted if not np.isfinite(scores[index]).all()]
        if wrong:
            column = int(np.argmin(np.isfinite(scores[wrong[0]]).all(1)))
            raise UserError(
                f"row {start + wrong[0]}: the scores of its images by {self._columns[column]} are not finite: the "
                "reward's weights are damaged, or it cannot score this image"
            )

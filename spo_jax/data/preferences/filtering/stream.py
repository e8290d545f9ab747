"""The pairs of a split on their way from the check to the records: those stay that fulfil a rule."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Float
from spo_jax.core.words import counted, listed
from spo_jax.data.preferences.check import Pair
from spo_jax.data.preferences.filtering.rule import Rule
from spo_jax.data.preferences.filtering.scores import KeptScores, PairScorer
from spo_jax.data.preferences.format import FILTER

_KINDS = {"decided": "decided pair", "ties": "tie"}


class PairFilter:
    """Filters splits by a rule.

    Args:
      rule: the rule.
      open_scorer: function that loads the rewards; it is called when there is a split to filter.
      resolution: side to which images are brought before they are scored; 0 scores each in its own size.

    Attributes:
      rule: the rule.
    """

    def __init__(self, rule: Rule, open_scorer: Callable[[], PairScorer], resolution: int = 0):
        self.rule = rule
        self._open = open_scorer
        self._resolution = resolution

    @property
    def origin(self) -> dict[str, Any]:
        """What a filtered split is made from besides the rows of its source."""
        size = f"; images of {self._resolution} px" if self._resolution else ""
        return {FILTER: f"{self.rule}{size}"}

    @contextlib.contextmanager
    def of_split(self, split: str, rows: int, data_dir: Path, made_from: Mapping[str, Any]) -> Iterator["SplitFilter"]:
        """Opens the filter of one split, and keeps its scores in ``data_dir/scores-SPLIT``.

        Args:
          split: name of the split.
          rows: number of its rows.
          data_dir: folder of the prepared splits.
          made_from: what determines its rows.

        Raises:
          UserError: a reward cannot be loaded, or kept scores are of something else.
        """
        scorer = self._open()
        columns = [f"{reward}#{score}" if score else reward for reward, score in self.rule.columns]
        bound = {"rows": dict(made_from), "resolution": self._resolution}
        with KeptScores(data_dir / f"scores-{split}", rows, columns, scorer, bound) as scores:
            yield SplitFilter(self.rule, split, scores, scorer)


class SplitFilter:
    """Filters the rows of one split, and counts them.

    Args:
      rule: the rule.
      split: name of the split, for messages.
      scores: scores of the rows.
      scorer: what computes them.
    """

    def __init__(self, rule: Rule, split: str, scores: KeptScores, scorer: PairScorer):
        self._rule = rule
        self._split = split
        self._scores = scores
        self._scorer = scorer
        self._seen: Counter[str] = Counter()
        self._kept: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()

    def __call__(self, checked: Iterable[Pair | str], notes: dict[str, int]) -> Iterator[Pair | str]:
        """Yields, for each row in order, its pair or the reason why it is left out.

        Args:
          checked: for each row its pair, or the reason why it was rejected.
          notes: where to write how many pairs were left out so far.

        Raises:
          UserError: no pair is left; or as `KeptScores.next`.
        """
        rows = iter(checked)
        while batch := list(itertools.islice(rows, self._scorer.pairs_at_a_time)):
            for result, scores in zip(batch, self._scores.next(batch), strict=True):
                yield self._judged(result, scores) if isinstance(result, Pair) else result
            notes["left out"] = self._seen.total() - self._kept.total()
        if self._seen and not self._kept.total():
            raise UserError(f"split {self._split}: the filter leaves no pair: {'; '.join(lines_of(self.record()))}")

    def _judged(self, pair: Pair, scores: Float[np.ndarray, "c 2"]) -> Pair | str:
        kind = "ties" if pair.labels[0] == pair.labels[1] else "decided"
        failed = self._rule.failed(scores, pair.labels)
        self._seen[kind] += 1
        self._kept[kind] += not failed
        self._failed.update(failed)
        return f"not {listed(failed)}" if failed else pair

    def record(self) -> dict[str, Any]:
        """Returns the rule and what became of the pairs, as JSON; a pair may fail several conditions."""
        counts = {
            kind: {
                "pairs": self._seen[kind],
                "kept": self._kept[kind],
                "failed": {text: self._failed[text] for text in texts},
            }
            for kind, texts in self._rule.texts.items()
        }
        return {"rule": str(self._rule), **counts, "rewards": self._scorer.identity}


def lines_of(record: Mapping[str, Any]) -> list[str]:
    """Says what became of the pairs of each kind, by `SplitFilter.record`."""
    lines = []
    for kind, noun in _KINDS.items():
        counts = record[kind]
        if not counts["pairs"]:
            continue
        failed = [f"{number} fail {text}" for text, number in counts["failed"].items()]
        several = " (a pair may fail several)" if len(failed) > 1 else ""
        why = f"; {listed(failed)}{several}" if failed else ""
        lines.append(f"{counts['kept']} of {counted(counts['pairs'], noun)} kept{why}")
    return lines

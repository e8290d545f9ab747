"""Votes for one of two, counted: wins and ties, the share of wins with its interval, and the sign test."""

import dataclasses
from collections.abc import Iterable

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Tally:
    """Votes between a first and a second.

    Attributes:
      first: votes for the first.
      second: votes for the second.
      ties: votes for neither. They are reported, and neither the share nor the test uses them, because they say
        nothing about a direction.
    """

    first: int
    second: int
    ties: int

    @property
    def decided(self) -> int:
        """Votes that are no ties."""
        return self.first + self.second

    def share(self) -> float | None:
        """Returns the second's share of the decided votes, 0 to 1; None if there are none."""
        return self.second / self.decided if self.decided else None

    def interval(self) -> tuple[float, float]:
        """Returns Wilson's 95 % interval of `share`; 0 to 1 if no vote is decided."""
        if not self.decided:
            return 0.0, 1.0
        interval = self._test().proportion_ci(CONFIDENCE, method="wilson")
        return float(interval.low), float(interval.high)

    def p_value(self) -> float:
        """Returns the p value of the two-sided sign test.

        It is the probability of a lead at least as large if every decided vote were a coin's; 1 without decided votes.
        """
        return float(self._test().pvalue) if self.decided else 1.0

    def _test(self):
        from scipy.stats import binomtest  # here, because it takes a second to import

        return binomtest(self.second, self.decided, 0.5)


def count_votes(winners: Iterable[int | None]) -> Tally:
    """Counts votes.

    Args:
      winners: 0 for a vote for the first, 1 for the second, None for a tie.
    """
    winners = list(winners)
    return Tally(winners.count(0), winners.count(1), winners.count(None))

"""Which settings a contestant takes: those whose images the labellers like best beside the base's, by their votes.

Nobody has the truth of what is drawn, and the preference model is what some methods learn from and others do not. What
everybody can ask are people. So trials are judged by votes (`benchmarks.compare_methods.voting`) on images of training
prompts. The number of votes and the compute of the trials are the same for all.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def best_trial(trials: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Returns the trial with the most votes; of equal ones the first, which has the lower learning rate.

    Args:
      trials: trials with a ``share``, which is None where a trial failed.

    Returns:
      The trial; None if all failed.
    """
    finished = [trial for trial in trials if trial["share"] is not None]
    return max(finished, key=lambda trial: trial["share"], default=None)

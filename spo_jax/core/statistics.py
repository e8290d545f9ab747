"""Means with standard errors, and paired comparisons of two measurements."""

from collections.abc import Mapping, Sequence

import numpy as np

from spo_jax.core.typing import Float


def standard_error(values: Float[np.ndarray, " n"]) -> float | None:
    """Returns the standard error of the mean, or None for a single value, whose spread is unknown."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def mean_and_error(values: Float[np.ndarray, " n"]) -> tuple[float, float | None]:
    """Returns the mean and its standard error."""
    return float(values.mean(dtype=np.float64)), standard_error(values)


def paired_scores(
    before: Mapping[str, Float[np.ndarray, " n"]],
    after: Mapping[str, Float[np.ndarray, " n"]],
    meanings: Mapping[str, str],
    lower_is_better: Sequence[str] = (),
) -> dict[str, dict]:
    """Compares two measurements of the same items: means, and the paired change, with their standard errors.

    Args:
      before: scores by name, one value per item.
      after: the same scores of the same items in the same order.
      meanings: one sentence per score, for the report.
      lower_is_better: names of scores that improve by falling.

    Returns:
      A dict per score with before, before_se, before_std, after, after_se, change, change_se, count (of items), meaning
      and lower_is_better. The standard errors (``_se``) are None for a single item.
    """
    scores = {}
    for name, values in before.items():
        first = np.asarray(values, np.float64)
        second = np.asarray(after[name], np.float64)
        scores[name] = {
            "before": float(first.mean()),
            "before_se": standard_error(first),
            "before_std": float(first.std()),
            "after": float(second.mean()),
            "after_se": standard_error(second),
            "change": float((second - first).mean()),
            "change_se": standard_error(second - first),
            "count": len(first),
            "meaning": meanings.get(name, ""),
            "lower_is_better": name in lower_is_better,
        }
    return scores

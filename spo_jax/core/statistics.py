"""Before against after, on pictures that share prompt and noise."""

from collections.abc import Mapping

import numpy as np

from spo_jax.core.typing import Float


def _standard_error(values: Float[np.ndarray, " n"]) -> float | None:
    """None for one value, which says nothing about its spread."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None


def paired_scores(
    before: Mapping[str, Float[np.ndarray, " n"]],
    after: Mapping[str, Float[np.ndarray, " n"]],
    meanings: Mapping[str, str],
    lower_is_better: tuple[str, ...] = (),
) -> dict[str, dict]:
    """Means with standard errors, and the paired change with its own.

    Args:
      before, after: per-picture scores by name, picture i of one beside picture i of the other.
      meanings: a sentence per score, for the report.

    Returns:
      Per score: before, before_se, before_std, after, after_se, change, change_se, meaning, lower_is_better. The
      standard errors (``_se``) are None for a single picture.
    """
    scores = {}
    for name, first in before.items():
        first, second = np.asarray(first, np.float64), np.asarray(after[name], np.float64)
        scores[name] = {
            "before": float(first.mean()),
            "before_se": _standard_error(first),
            "before_std": float(first.std()),
            "after": float(second.mean()),
            "after_se": _standard_error(second),
            "change": float((second - first).mean()),
            "change_se": _standard_error(second - first),
            "meaning": meanings.get(name, ""),
            "lower_is_better": name in lower_is_better,
        }
    return scores

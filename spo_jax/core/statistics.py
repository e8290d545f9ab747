"""Means and medians with standard errors and intervals, paired comparisons, and shares of wins.

Values come in clusters: images of one prompt resemble each other, so that the prompt is what is drawn at random. Every
error and interval here is one between clusters.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from spo_jax.core.tally import CONFIDENCE
from spo_jax.core.typing import Float, Int

Statistic = Literal["mean", "median"]
RESAMPLES = 2000  # the ends of a 95 % interval are then values of 50 resamples
_CHUNK = 2**22  # counts that are sorted at once


class Estimate(NamedTuple):
    """A statistic and how well it is known.

    Attributes:
      value: the statistic.
      error: its standard error; None for a single cluster, whose spread is unknown.
      low: lower end of the 95 % interval; None where the error is.
      high: upper end of the 95 % interval; None where the error is.
      clusters: clusters that have a value.
    """

    value: float
    error: float | None
    low: float | None
    high: float | None
    clusters: int


class Share(NamedTuple):
    """A share of wins, 0 to 1, with its 95 % interval, of so many clusters."""

    value: float
    low: float
    high: float
    clusters: int


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


def resample_counts(clusters: int, seed: int, resamples: int = RESAMPLES) -> Int[np.ndarray, "r clusters"]:
    """Draws bootstrap resamples of clusters: how often each cluster is in each of them."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples).astype(np.int32)


def estimate(
    values: Float[np.ndarray, "clusters members"],
    counts: Int[np.ndarray, "r clusters"],
    statistic: Statistic = "mean",
) -> Estimate | None:
    """Estimates the mean or median of all values.

    Args:
      values: a row of values for each cluster; what is not finite is missing.
      counts: resamples of the clusters (see `resample_counts`).
      statistic: "mean" or "median".

    Returns:
      The estimate; None if there is no value at all.
    """
    return _estimate([values], counts, statistic)


def paired_estimate(
    first: Float[np.ndarray, "clusters members"],
    second: Float[np.ndarray, "clusters members"],
    counts: Int[np.ndarray, "r clusters"],
    statistic: Statistic = "mean",
) -> Estimate | None:
    """Estimates by how much the statistic of ``second`` exceeds that of ``first``.

    Both are resampled together, so that what the values of an item share cancels. For means this is the mean of the
    differences.

    Args:
      first: as in `estimate`.
      second: values of the same items. An item that one of the two misses is left out of both.
      counts: as in `estimate`.
      statistic: as in `estimate`.

    Returns:
      The estimate of the difference; None if no item has both values.
    """
    if statistic == "mean":
        return _estimate([second - first], counts, statistic)
    known = np.isfinite(first) & np.isfinite(second)
    return _estimate([np.where(known, values, np.nan) for values in (second, first)], counts, statistic)


def _estimate(
    parts: Sequence[Float[np.ndarray, "clusters members"]], counts: Int[np.ndarray, "r clusters"], statistic: Statistic
) -> Estimate | None:
    """Estimates the statistic of the first part minus that of the second, if there is one."""
    known = np.isfinite(parts[0])
    rows = known.any(1)
    clusters = int(rows.sum())
    if not clusters:
        return None
    summed_up, resampled = {"mean": (np.mean, _means), "median": (np.median, _medians)}[statistic]
    value = _minus([float(summed_up(part[known].astype(np.float64))) for part in parts])
    if clusters == 1:
        return Estimate(value, None, None, None, clusters)
    if not rows.all():  # as if the others had never been there
        counts = counts[counts[:, rows].any(1)][:, rows]
        parts = [part[rows] for part in parts]
    again = _minus([resampled(part.astype(np.float64), counts) for part in parts])
    error = _error_of_mean(parts[0]) if statistic == "mean" else float(again.std(ddof=1))
    return Estimate(value, error, *interval(again, clusters), clusters)


def _minus(parts: Sequence) -> Any:
    return parts[0] if len(parts) == 1 else parts[0] - parts[1]


def _error_of_mean(values: Float[np.ndarray, "clusters members"]) -> float:
    """The standard error of the mean of all values, of which only those of different clusters are independent."""
    residuals = np.nansum(values - np.nanmean(values, dtype=np.float64), axis=1, dtype=np.float64)
    clusters = len(values)
    return float(np.sqrt(clusters / (clusters - 1) * (residuals**2).sum()) / np.isfinite(values).sum())


def _means(values: Float[np.ndarray, "clusters members"], counts: Int[np.ndarray, "r clusters"]) -> Any:
    """Returns the mean of each resample."""
    sums = np.stack([np.nansum(values, 1), np.isfinite(values).sum(1)], axis=1)
    totals, known = (counts.astype(np.float64) @ sums).T  # products of whole numbers would be made one by one
    return totals / known


def _medians(values: Float[np.ndarray, "clusters members"], counts: Int[np.ndarray, "r clusters"]) -> Any:
    """Returns the median of each resample: values are sorted once, and counted in that order for each of them."""
    cluster, _ = known = np.nonzero(np.isfinite(values))
    order = np.argsort(values[known], kind="stable")
    ordered = values[known][order]
    medians = []
    for part in np.array_split(counts, -(-counts.shape[0] * len(ordered) // _CHUNK)):
        upto = part[:, cluster[order]].cumsum(1, dtype=np.int32)
        total = upto[:, -1:]
        lower, upper = (np.argmax(upto >= rank, axis=1) for rank in ((total + 1) // 2, total // 2 + 1))
        medians.append((ordered[lower] + ordered[upper]) / 2)
    return np.concatenate(medians)


def interval(resampled: Float[np.ndarray, " r"], clusters: int) -> tuple[float, float]:
    """Returns the 95 % interval of a statistic from its values in resamples.

    Quantiles of the resamples alone would be too narrow for few clusters. They are taken further out, by as much as
    Student's interval of a mean is wider than the bootstrap's (Hesterberg 2015, "What Teachers Should Know About the
    Bootstrap", section 4.1.2).

    Args:
      resampled: the statistic in each resample.
      clusters: number of clusters, at least 2.
    """
    from scipy.special import ndtr, stdtrit  # here, because it takes a while to import

    reach = np.sqrt(clusters / (clusters - 1)) * stdtrit(clusters - 1, (1 + CONFIDENCE) / 2)
    low, high = np.quantile(resampled, [ndtr(-reach), ndtr(reach)])
    return float(low), float(high)


def win_share(
    first: Float[np.ndarray, "clusters members"],
    second: Float[np.ndarray, "clusters members"],
    higher_wins: bool = True,
) -> Share | None:
    """Returns the share of items in which ``first`` beats ``second``; a tie counts half.

    The interval is Wilson's, which is right for shares near 0 and 1 as well. Its number of trials is what the spread
    between clusters is worth: between the number of clusters and that of items.

    Args:
      first: a row of values for each cluster; what is not finite is missing.
      second: values of the same items.
      higher_wins: whether the higher value wins, or the lower one.

    Returns:
      The share; None if no item has both values.
    """
    known = np.isfinite(first) & np.isfinite(second)
    rows = known.any(1)
    clusters = int(rows.sum())
    if not clusters:
        return None
    wins = (np.sign(second - first) * (-1 if higher_wins else 1) + 1) / 2
    share = float(wins[known].mean())
    trials = float(clusters)
    if clusters > 1 and 0 < share < 1:
        error = _error_of_mean(np.where(known, wins, np.nan)[rows])
        trials = float(np.clip(share * (1 - share) / max(error**2, 1e-12), clusters, known.sum()))
    return Share(share, *_wilson(share, trials), clusters)


def _wilson(share: float, trials: float) -> tuple[float, float]:
    from scipy.special import ndtri  # here, because it takes a while to import

    z = float(ndtri((1 + CONFIDENCE) / 2))
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    reach = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return max(0.0, float(centre - reach)), min(1.0, float(centre + reach))

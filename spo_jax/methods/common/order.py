"""Which rows a batch takes: a function of the seed and the batch's number alone."""

import numpy as np

from spo_jax.core.typing import Int


def batch_rows(seed: int, count: int, size: int, number: int) -> Int[np.ndarray, " b"]:
    """The rows of a batch: epochs are permutations drawn from (seed, epoch), laid end to end and cut.

    A resumed run therefore continues with the very same rows.

    Args:
      count: rows of an epoch.
      size: rows of a batch.
      number: the batch's number.
    """
    positions = np.arange(number * size, (number + 1) * size)
    epochs = {epoch: np.random.default_rng((seed, epoch)).permutation(count) for epoch in np.unique(positions // count)}
    return np.asarray([epochs[position // count][position % count] for position in positions])

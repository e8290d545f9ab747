"""The rows of each batch, which follow from the seed and the batch's number alone."""

import numpy as np

from spo_jax.core.typing import Int


def batch_rows(seed: int, count: int, size: int, number: int) -> Int[np.ndarray, " b"]:
    """Returns the rows of a batch.

    The permutation of each epoch is drawn from (seed, epoch). Batches are cut from the permutations laid end to end, so
    a resumed run continues with the very same rows.

    Args:
      seed: seed of the run.
      count: number of rows in an epoch.
      size: number of rows in a batch.
      number: number of the batch, from 0 on.
    """
    positions = np.arange(number * size, (number + 1) * size)
    epochs = {epoch: np.random.default_rng((seed, epoch)).permutation(count) for epoch in np.unique(positions // count)}
    return np.asarray([epochs[position // count][position % count] for position in positions])

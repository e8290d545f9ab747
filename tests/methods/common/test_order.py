"""Which rows a batch takes."""

import numpy as np
import pytest

from spo_jax.methods.common.order import batch_rows

COUNT = 5


@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_every_epoch_shows_every_row_once(size):
    shown = np.concatenate([batch_rows(0, COUNT, size, number) for number in range(35)])
    for epoch in shown[: len(shown) // COUNT * COUNT].reshape(-1, COUNT):
        assert sorted(epoch) == list(range(COUNT))
    assert len({tuple(epoch) for epoch in shown[: 7 * COUNT].reshape(7, -1)}) > 1


def test_a_batch_is_a_function_of_its_number_and_the_seed():
    rows = [batch_rows(seed, 50, 20, 7).tolist() for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]

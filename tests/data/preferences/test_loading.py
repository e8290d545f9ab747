"""A batch depends only on the seed and on its number."""

import itertools
import multiprocessing
import signal
import sys
import threading
import time

import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.data.preferences import loading
from spo_jax.data.preferences.images import decode
from tests.support.pairs import noise_pairs

ROWS = np.asarray([0, 1, 2, 4, 6, 7, 8])  # seven of nine pairs
SETTINGS = dict(side=16, batch_size=4, seed=3)


@pytest.fixture(scope="module")
def pairs():
    return noise_pairs(9)


def load(pairs, number, **settings):
    stream = loading.batches(pairs, ROWS, **SETTINGS | settings)
    try:
        return list(itertools.islice(stream, number))
    finally:
        stream.close()


def rows_of(batches):
    return np.concatenate([batch.rows for batch in batches])


def assert_equal(ours, others):
    assert len(ours) == len(others) > 0
    for one, other in zip(ours, others, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.images, other.images)


def test_rows_come_with_their_own_images(pairs):
    for batch in load(pairs, 2):
        assert batch.images.shape == (4, 2, 16, 16, 3) and batch.rows.dtype == np.int32
        for row, images in zip(batch.rows, batch.images, strict=True):
            np.testing.assert_array_equal(images, [decode(data, 16) for data in pairs.images(row)])


def test_epochs_are_different_permutations_in_one_sequence(pairs):
    """With seven rows in batches of four, epochs begin in the middle of batches."""
    epochs = rows_of(load(pairs, 7)).reshape(4, 7)
    assert all(sorted(epoch) == ROWS.tolist() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_neighbouring_seeds_have_nothing_in_common(pairs):
    """grain by itself gives seed 4 from its first epoch on what it gives seed 3 from its second epoch on."""
    epochs = [tuple(epoch) for seed in (3, 4) for epoch in rows_of(load(pairs, 7, seed=seed)).reshape(4, 7)]
    assert len(set(epochs)) == 8


@pytest.mark.parametrize("start", [1, 2, 5])
def test_starting_in_the_middle_continues_with_the_same_batches(pairs, start):
    """Batch 2 holds rows of the second epoch only, and batch 5 spans the third and the fourth."""
    assert_equal(load(pairs, 4, start=start), load(pairs, start + 4)[start:])


@pytest.mark.parametrize("settings", [dict(threads=0), dict(threads=1), dict(workers=3, threads=1)])
def test_threads_and_workers_change_nothing(pairs, settings):
    assert_equal(load(pairs, 4, start=2, **settings), load(pairs, 4, start=2))


@pytest.mark.parametrize("positions", [([0, 1], [2, 3]), ([0, 2], [1, 3]), ([1, 2, 3], [0])])
@pytest.mark.parametrize("settings", [dict(start=2), dict(shuffle=False, endless=False)])
def test_the_parts_of_all_processes_make_the_whole_batch(pairs, settings, positions):
    whole = load(pairs, 4, **settings)
    parts = [load(pairs, 4, positions=np.asarray(part), **settings) for part in positions]
    order = np.argsort(np.concatenate(positions))
    joined = [
        loading.LoadedBatch(
            np.concatenate([one.images, other.images])[order],
            np.concatenate([one.rows, other.rows])[order],
        )
        for one, other in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole)


def test_a_single_pass_is_in_order_and_pads_its_last_batch(pairs):
    first, last = load(pairs, 9, shuffle=False, endless=False)
    assert (first.rows.tolist(), last.rows.tolist()) == ([0, 1, 2, 4], [6, 7, 8, 8])
    assert last.images.shape == first.images.shape
    assert_equal(load(pairs, 9, shuffle=False, endless=False, start=1), [last])
    assert_equal(load(pairs, 9, shuffle=False, endless=False, workers=2), [first, last])
    assert not load(pairs, 9, shuffle=False, endless=False, start=3)


def test_a_single_shuffled_pass_loads_every_row_once(pairs):
    first, last = load(pairs, 9, endless=False)
    assert sorted([*first.rows, *last.rows[:3]]) == ROWS.tolist()
    assert_equal([first], load(pairs, 1))


def test_fewer_rows_than_a_batch_are_padded(pairs):
    stream = loading.batches(pairs, np.asarray([5]), **SETTINGS, endless=False)
    assert [batch.rows.tolist() for batch in stream] == [[5, 5, 5, 5]]


def test_other_arrays_may_replace_the_images(pairs):
    """The batches hold the same rows in the same order."""
    latents = load(pairs, 3, read=lambda row: np.full((2, 2, 2, 4), row, np.float32))
    images = load(pairs, 3)
    np.testing.assert_array_equal(rows_of(latents), rows_of(images))
    for batch in latents:
        np.testing.assert_array_equal(batch.images[:, 0, 0, 0, 0], batch.rows)


@pytest.mark.parametrize("settings", [dict(), dict(threads=0), dict(workers=2)])
def test_an_error_names_the_row_of_an_image_damaged_later(pairs, settings):
    damaged = noise_pairs(9)
    damaged.files[4] = (damaged.files[4][0], damaged.files[4][1][:100])
    with pytest.raises(UserError, match="^pair 4: the second image cannot be decoded"):
        load(damaged, 2, shuffle=False, **settings)


@pytest.mark.parametrize("settings", [dict(), dict(workers=2)])
def test_closing_the_generator_ends_threads_and_processes(pairs, settings):
    before = set(multiprocessing.active_children())
    load(pairs, 1, **settings)
    deadline = time.monotonic() + 60  # a thread finishes the image that it is working on
    while time.monotonic() < deadline and any("grain-prefetch" in t.name for t in threading.enumerate()):
        time.sleep(0.01)
    assert not [thread.name for thread in threading.enumerate() if "grain-prefetch" in thread.name]
    assert set(multiprocessing.active_children()) == before


def test_invalid_arguments_and_a_missing_grain_are_errors(pairs, monkeypatch):
    with pytest.raises(UserError, match="no preference pairs to load"):
        loading.batches(pairs, np.zeros(0, np.int32), **SETTINGS)
    for positions in ([], [0, 4], [-1, 0], [1, 0], [1, 1]):
        with pytest.raises(ValueError, match="of a batch of 4 pairs: expected at least one, ascending"):
            loading.batches(pairs, ROWS, **SETTINGS, positions=np.asarray(positions, int))
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(UserError, match=r'needs grain: run pip install -e "\.\[data\]" in the checkout'):
        loading.batches(pairs, ROWS, **SETTINGS)


def test_workers_leave_ctrl_c_to_the_run():
    """A terminal sends it to them too, and the batch that the run finishes may still need them."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(callable, (loading._Reader(len),))  # as grain sends it
        assert pool.apply(signal.getsignal, (signal.SIGINT,)) == signal.SIG_IGN

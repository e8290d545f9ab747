"""Batches of preference pairs, which grain reads, decodes, resizes and assembles while the devices work.

A batch is a function of the seed and of its number alone. The permutations of all epochs form one sequence, which is
cut into batches; pairs are picked by their position in that sequence; and batches are assembled, in order, after the
threads and worker processes. Therefore neither the number of threads and workers nor the number of processes of a run
changes a batch, and resuming means starting at another number.
"""

import dataclasses
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from absl import flags

from spo_jax.core.errors import UserError, missing_extra
from spo_jax.core.typing import Float, Int, UInt8
from spo_jax.data.preferences.images import decode


@runtime_checkable
class ImagePairs(Protocol):
    """The part of a prepared split (`spo_jax.data.preferences.format.Preferences`) that loading needs; picklable.

    Attributes:
      digest: digest of the split's content.
    """

    digest: str

    def __len__(self) -> int:
        """Returns the number of pairs."""

    def images(self, row: int) -> tuple[bytes, bytes]:
        """Returns both images of a pair as they are stored, encoded."""


class LoadedBatch(NamedTuple):
    """One process's part of a batch.

    Attributes:
      images: pixels, or the latents that replace them.
      rows: position of each pair in the split.
    """

    images: UInt8[np.ndarray, "n 2 side side 3"] | Float[np.ndarray, "n 2 h w c"]
    rows: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """Reads and decodes the images of pairs; picklable if ``pairs`` is.

    Attributes:
      pairs: the pairs to read.
      side: height and width of the decoded images in pixels.
    """

    pairs: ImagePairs
    side: int

    def __call__(self, row: int) -> UInt8[np.ndarray, "2 side side 3"]:
        """Reads and decodes both images of a pair.

        Raises:
          UserError: an image is damaged; the message names its row.
        """
        names = (f"pair {row}: the {which} image" for which in ("first", "second"))
        files = zip(self.pairs.images(row), names, strict=True)
        return np.stack([decode(data, self.side, name) for data, name in files])


def batches(
    preferences: ImagePairs,
    rows: Int[np.ndarray, " m"],
    *,
    side: int,
    batch_size: int,
    seed: int = 0,
    start: int = 0,
    shuffle: bool = True,
    endless: bool = True,
    positions: Int[np.ndarray, " p"] | None = None,
    threads: int = 8,
    workers: int = 0,
    read: Callable[[int], np.ndarray] | None = None,
) -> Generator[LoadedBatch, None, None]:
    """Loads one process's part of the batches from number ``start`` on.

    The threads and worker processes end when the generator is closed or deleted.

    Args:
      preferences: the pairs.
      rows: positions of the pairs to load, in order.
      side: height and width of the images in pixels.
      batch_size: number of pairs in a batch, over all processes.
      seed: seed of the permutations.
      start: number of the first batch.
      shuffle: whether every epoch is another permutation of ``rows``, drawn from (seed, epoch).
      endless: whether to load epoch after epoch, as one sequence cut into batches. If False, ``rows`` are loaded once,
        and the last batch is padded with its last pair, because shapes are fixed.
      positions: positions within every batch that this process's devices hold, ascending
        (`spo_jax.parallel.multihost.local_positions`); by default all of them.
      threads: number of threads in each worker process; 0 loads in the caller's thread.
      workers: number of worker processes. They are spawned, so that a script that asks for any needs
        ``if __name__ == "__main__"``.
      read: function from a row to the array that replaces its decoded images, for example
        `spo_jax.methods.common.latents.LatentCache.pair`.

    Raises:
      UserError: there are no rows, grain is not installed, or, while loading, an image is damaged.
    """
    if not len(rows):
        raise UserError("no preference pairs to load: no pair of the split is left")
    positions = np.arange(batch_size) if positions is None else positions
    inside = len(positions) and 0 <= positions[0] and positions[-1] < batch_size
    if not inside or (np.diff(positions) < 1).any():
        raise ValueError(f"positions {positions} of a batch of {batch_size} pairs: expected at least one, ascending")
    grain = _import_grain()
    own = len(positions)

    # The sequence of rows that the batches are cut from.
    order = grain.MapDataset.source(np.asarray(rows, np.int32))
    if shuffle:
        # Not the seed itself, because grain adds the epoch to it: seed 3 would give from its second epoch on what
        # seed 4 gives from its first.
        order = order.shuffle(seed=int(np.random.SeedSequence(seed).generate_state(1)[0]))
    if endless:
        order = order.repeat()

    # The rows of this process's part of the batches, and how to read them.
    stop = sys.maxsize // batch_size if endless else -(-len(rows) // batch_size)
    pick = _Pick(order, len(order), batch_size, tuple(positions.tolist()))
    reader = _Reader(read or ImageReader(preferences, side))
    elements = grain.MapDataset.range(min(start, stop) * own, stop * own).map(pick).map(reader)

    # Threads and worker processes load two batches ahead, counted in pairs: images of 1024 pixels take 6 MB per pair.
    ahead = max(2 * own, threads) if threads else 0
    dataset = elements.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
    if workers:
        _allow_workers()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(1, ahead // workers))
        dataset = dataset.mp_prefetch(options)
    return _together(dataset, own)


@dataclasses.dataclass(frozen=True)
class _Pick:
    """Returns the row of this process's n-th pair, counted over all of its batches.

    Attributes:
      order: sequence of rows that the batches are cut from.
      length: number of rows in ``order``.
      batch_size: number of pairs in a batch, over all processes.
      positions: positions within every batch that this process holds.
    """

    order: Any
    length: int
    batch_size: int
    positions: tuple[int, ...]

    def __call__(self, number: int) -> int:
        batch, inside = divmod(number, len(self.positions))
        position = batch * self.batch_size + self.positions[inside]
        return int(self.order[min(position, self.length - 1)])


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Returns a row together with its array.

    Attributes:
      read: function from a row to its array.
    """

    read: Callable[[int], np.ndarray]

    def __call__(self, row: int) -> tuple[int, np.ndarray]:
        return row, self.read(row)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Ties a worker process, which gets its reader in this way, to the process that started it.

        It leaves Ctrl-C to that process, and ends with it, however that ends.
        """
        self.__dict__.update(state)
        parent = multiprocessing.parent_process()
        if parent is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _together(dataset: Any, size: int) -> Generator[LoadedBatch, None, None]:
    """Assembles batches of ``size`` pairs.

    This happens after the workers: if each of them assembled batches from its own share, the number of workers would
    determine the content of a batch.
    """
    iterator = iter(dataset)
    try:
        while elements := list(itertools.islice(iterator, size)):
            rows, images = zip(*elements, strict=True)
            yield LoadedBatch(np.stack(images), np.asarray(rows, np.int32))
    finally:
        iterator.close()


def _import_grain() -> Any:
    """Imports grain, or raises a `UserError` that says how to install it."""
    try:
        import grain
    except ImportError as error:
        raise missing_extra("loading preference pairs needs grain", "data") from error
    return grain


def _allow_workers() -> None:
    """Lets grain start processes where no flags have been parsed, as in a notebook or a test."""
    flag = "grain_enable_multiprocess_worker_profiling"
    if flag in flags.FLAGS and not flags.FLAGS.is_parsed():
        flags.FLAGS[flag].present = 1  # grain does the same with other flags of its own

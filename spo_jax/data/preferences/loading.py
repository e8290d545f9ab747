"""Batches of preference pairs: files read, decoded, resized and put together while the devices work.

grain underneath. A batch is a function of (seed, its number) alone: epochs are permutations laid end to end and cut,
pairs are picked by their position in that, and what threads and worker processes hand over is put together after them,
in order. So neither their number nor that of the processes of a run changes a batch, and resuming is starting at
another number.
"""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from absl import flags

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Float, Int, UInt8
from spo_jax.data.preferences.format.images import decode


@runtime_checkable
class PicturePairs(Protocol):
    """What loading has to know of a prepared split (`spo_jax.data.preferences.format.Preferences`); picklable.

    Attributes:
      digest: of the split's content.
    """

    digest: str

    def __len__(self) -> int:
        """The number of pairs."""

    def images(self, row: int) -> tuple[bytes, bytes]:
        """Both pictures of a pair as they are stored, encoded."""


class LoadedBatch(NamedTuple):
    """One process's part of a batch.

    Attributes:
      images: pixels, or the latents that stand in for them. rows: which pairs of the split these are.
    """

    images: UInt8[np.ndarray, "n 2 side side 3"] | Float[np.ndarray, "n 2 h w c"]
    rows: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Reads rows: `Pictures(pairs, side)(row)` is both pictures of a pair, decoded; picklable as ``pairs`` is."""

    pairs: PicturePairs
    side: int

    def __call__(self, row: int) -> UInt8[np.ndarray, "2 side side 3"]:
        """
        Raises:
          UserError: a picture is damaged; its row is named.
        """
        names = (f"pair {row}: the {which} picture" for which in ("first", "second"))
        files = zip(self.pairs.images(row), names, strict=True)
        return np.stack([decode(data, self.side, name) for data, name in files])


def batches(
    preferences: PicturePairs,
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
    """One process's part of the batches from number ``start`` on.

    Close the generator, or let go of it, and its threads and worker processes end.

    Args:
      rows: which pairs take part, in order.
      side: of the pictures, in pixels.
      batch_size: pairs of all processes together.
      shuffle: every epoch is another permutation of ``rows``, drawn from (seed, epoch).
      endless: epoch after epoch, laid end to end and cut; else ``rows`` once, and the last batch is filled up with its
        last pair: shapes are fixed.
      positions: within every batch, ascending: those that this process's devices hold
        (`spo_jax.parallel.multihost.local_positions`); all of them by default.
      threads: in each worker process; 0 loads in the caller's. workers: processes, 0 is none; they are spawned, so a
        script that asks for them needs ``if __name__ == "__main__"``.
      read: what gives a row's array in the place of its decoded pictures: `spo_jax.methods.common.latents.LatentCache.pair`.

    Raises:
      UserError: no rows, or grain is not installed; while loading, a damaged picture.
    """
    if not len(rows):
        raise UserError("no preference pair to load: none of the split is left")
    positions = np.arange(batch_size) if positions is None else positions
    inside = len(positions) and 0 <= positions[0] and positions[-1] < batch_size
    if not inside or (np.diff(positions) < 1).any():
        raise ValueError(f"positions {positions} of a batch of {batch_size} pairs: expected some, ascending")
    grain, own = _import_grain(), len(positions)
    order = grain.MapDataset.source(np.asarray(rows, np.int32))
    if shuffle:
        # Not the seed itself: grain adds the epoch to it, and the runs of neighbouring seeds would follow each other.
        order = order.shuffle(seed=int(np.random.SeedSequence(seed).generate_state(1)[0]))
    if endless:
        order = order.repeat()
    stop = sys.maxsize // batch_size if endless else -(-len(rows) // batch_size)
    pick = _Pick(order, len(order), batch_size, tuple(positions.tolist()))
    reader = _Reader(read or Pictures(preferences, side))
    elements = grain.MapDataset.range(min(start, stop) * own, stop * own).map(pick).map(reader)
    # Two batches ahead, counted in pairs: pictures of 1024 pixels are 6 MB a pair.
    ahead = max(2 * own, threads) if threads else 0
    dataset = elements.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
    if workers:
        _allow_workers()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(1, ahead // workers))
        dataset = dataset.mp_prefetch(options)
    return _together(dataset, own)


@dataclasses.dataclass(frozen=True)
class _Pick:
    """The row of this process's n-th pair, counted through its batches."""

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
    read: Callable[[int], np.ndarray]

    def __call__(self, row: int) -> tuple[int, np.ndarray]:
        return row, self.read(row)


def _together(dataset: Any, size: int) -> Generator[LoadedBatch, None, None]:
    # After the workers: were each to make batches of its own share, their number would decide what is in a batch.
    iterator = iter(dataset)
    try:
        while elements := list(itertools.islice(iterator, size)):
            rows, images = zip(*elements, strict=True)
            yield LoadedBatch(np.stack(images), np.asarray(rows, np.int32))
    finally:
        iterator.close()


def _import_grain() -> Any:
    try:
        import grain
    except ImportError as error:
        raise UserError("loading preference pairs needs grain: pip install spo_jax[data]") from error
    return grain


def _allow_workers() -> None:
    """Lets grain start processes where nobody has parsed flags: in a notebook or a test."""
    asked = "grain_enable_multiprocess_worker_profiling"
    if asked in flags.FLAGS and not flags.FLAGS.is_parsed():
        flags.FLAGS[asked].present = 1  # so grain does it with flags of its own

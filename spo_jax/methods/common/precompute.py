"""One pass over a split through a network, its results kept on disk: latents, scores of clean pictures."""

import contextlib
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from spo_jax.core.typing import Array
from spo_jax.data.array_file import ArrayFile, Writer
from spo_jax.data.preferences.format.loading import LoadedBatch, PicturePairs, batches
from spo_jax.parallel.mesh import devices_in_context
from spo_jax.parallel.multihost import agreed, is_writer, join_parts, local_positions
from spo_jax.parallel.sharding import to_host


def fill(
    file: ArrayFile,
    pairs: PicturePairs,
    compute: Callable[[LoadedBatch], Array],
    *,
    side: int,
    pairs_per_device: int,
    title: str,
    threads: int = 8,
    workers: int = 0,
) -> None:
    """Computes the rows of ``file`` that are not there yet, a row per pair; nothing if it is whole.

    Process 0 writes, into a folder that all processes see. What was computed before a stop is kept.

    Args:
      compute: a process's part of a batch to the whole batch's rows, in the order in which `join_parts` lays them.
      side: of the pictures, in pixels. pairs_per_device: computed at a time; the same shape throughout.

    Raises:
      UserError: what is on disk is of something else, or another run is writing it; the folder cannot be written or is
        full; a damaged picture.
    """
    total, batch_size = file.shape[0], pairs_per_device * devices_in_context()
    with contextlib.ExitStack() as held:
        writer = held.enter_context(Writer(file)) if is_writer() and not _whole(file) else None
        done = agreed(writer.done if writer else total)
        if done < total:
            loaded = batches(
                pairs,
                np.arange(done, total, dtype=np.int32),
                side=side,
                batch_size=batch_size,
                shuffle=False,
                endless=False,
                positions=local_positions(batch_size),
                threads=threads,
                workers=workers,
            )
            held.enter_context(contextlib.closing(loaded))
            bar = held.enter_context(tqdm(total=total, initial=done, desc=title, unit="pair", disable=not is_writer()))
            for batch in loaded:
                rows, values = to_host((join_parts(batch.rows), compute(batch)))
                # In order, and without those that fill the last batch up.
                rows, index = np.unique(rows, return_index=True)
                if writer is not None:
                    writer.append(values[index])
                bar.update(len(rows))
    agreed(total)  # nobody reads before process 0 has written


def _whole(file: ArrayFile) -> bool:
    return file.path.exists() and file.rows_done() == file.shape[0]

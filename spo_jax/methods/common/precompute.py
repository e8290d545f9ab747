"""One pass of a network over a prepared split, with the results kept on disk: latents, or scores of clean images."""

import contextlib
from collections.abc import Callable

import numpy as np

from spo_jax.core.progress import bar
from spo_jax.core.typing import Array
from spo_jax.data.array_file import ArrayFile, Writer
from spo_jax.data.preferences.loading import ImagePairs, LoadedBatch, batches
from spo_jax.parallel.agreement import decided
from spo_jax.parallel.mesh import devices_in_context
from spo_jax.parallel.multihost import is_writer, join_parts, local_positions
from spo_jax.parallel.sharding import to_host


def fill(
    file: ArrayFile,
    pairs: ImagePairs,
    compute: Callable[[LoadedBatch], Array],
    *,
    side: int,
    pairs_per_device: int,
    title: str,
    threads: int = 8,
    workers: int = 0,
    whole: bool = False,
) -> None:
    """Computes the missing rows of ``file``, one per pair; does nothing if the file is complete.

    Process 0 writes to a folder that all processes see. If the pass is stopped, the rows computed so far are kept.

    Args:
      file: the file to complete.
      pairs: the prepared split.
      compute: function from a process's part of a batch to the rows of the whole batch, in the order of `join_parts`.
      side: side of the images in pixels.
      pairs_per_device: number of pairs that each device computes at a time; all batches have this shape.
      title: title of the progress bar.
      threads: see `spo_jax.data.preferences.loading.batches`.
      workers: see `spo_jax.data.preferences.loading.batches`.
      whole: whether every process loads whole batches, and ``compute`` gets them, for functions that share their work
        among the processes themselves.

    Raises:
      UserError: the rows on disk were computed from something else, or another run is writing them; or the folder
        cannot be written or is full; or an image is damaged.
    """
    total = file.shape[0]
    batch_size = pairs_per_device * devices_in_context()
    with contextlib.ExitStack() as held:
        # All processes start at the row where process 0 stopped.
        writer = held.enter_context(Writer(file)) if is_writer() and not _is_complete(file) else None
        done = decided(lambda: writer.done if writer else total)
        if done < total:
            loaded = batches(
                pairs,
                np.arange(done, total, dtype=np.int32),
                side=side,
                batch_size=batch_size,
                shuffle=False,
                endless=False,
                positions=None if whole else local_positions(batch_size),
                threads=threads,
                workers=workers,
            )
            held.enter_context(contextlib.closing(loaded))
            shown = held.enter_context(bar(title, total, "pair", done))
            for batch in loaded:
                numbers = batch.rows if whole else join_parts(batch.rows)
                rows, values = to_host((numbers, compute(batch)))
                # Keep the rows in order, and drop those that fill up the last batch.
                rows, index = np.unique(rows, return_index=True)
                if writer is not None:
                    writer.append(values[index])
                shown.update(len(rows))
    decided(lambda: None)  # no process reads before process 0 has written everything


def _is_complete(file: ArrayFile) -> bool:
    return file.path.exists() and file.rows_done() == file.shape[0]

"""A training step on the next batch of pairs, and where its time goes."""

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

from spo_jax.methods.common.state import TrainState
from spo_jax.run.loop import Row

Batch = TypeVar("Batch")


def timed_step(
    name: str, batches: Iterator[Batch], train: Callable[[Batch], tuple[TrainState, Any]], pairs: int
) -> tuple[TrainState, Any, Row]:
    """Trains on the next batch.

    Args:
      name: name of the step in the row.
      batches: where the next batch is loaded from.
      train: runs the compiled step; returns the next state and metrics.
      pairs: number of pairs in a batch.

    Returns:
      The next state, the metrics on the host, and the row of the step's seconds and speed.
    """
    begin = time.perf_counter()
    batch = next(batches)
    middle = time.perf_counter()
    state, metrics = train(batch)
    metrics = jax.device_get(metrics)
    end = time.perf_counter()
    seconds = {"seconds/loading": middle - begin, f"seconds/{name}": end - middle}
    return state, metrics, {**seconds, "pairs_per_second": pairs / (end - begin)}

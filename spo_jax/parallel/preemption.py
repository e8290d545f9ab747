"""SIGTERM, by which clusters announce that they take a machine away, as a question between two batches."""

import signal
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils


class PreemptionNotice:
    """A context in which SIGTERM does not end the process, but is reported by `came`.

    With several processes jax's own service listens and lets all of them stop at the same batch, whichever of them
    receives the signal. Outside of the loop over batches there is nothing to finish, and the signal has its usual
    effect.
    """

    def __init__(self) -> None:
        self._received = False
        self._before: Any = None

    def __enter__(self) -> "PreemptionNotice":
        if jax.process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._listen)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _listen(self, *_: Any) -> None:
        self._received = True
        logging.warning("SIGTERM: this batch is finished and saved, then the run stops")

    def came(self, batch: int) -> bool:
        """Whether to stop after ``batch``; every process asks after every batch, and all receive the same answer."""
        if jax.process_count() == 1:
            return self._received
        return multihost_utils.reached_preemption_sync_point(batch)

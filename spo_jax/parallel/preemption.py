"""SIGTERM, by which clusters announce that they take a machine away, and Ctrl-C, as a question between two batches."""

import contextlib
import os
import signal
import threading
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from spo_jax.core.signals import Interruption, abandon, listening, write_line


class PreemptionNotice:
    """A context in which SIGTERM and a first Ctrl-C do not end the process, but are reported by `came`.

    A second Ctrl-C ends a command at once, and raises `KeyboardInterrupt` elsewhere, as in a notebook. With several
    processes jax's own service listens to SIGTERM and lets all of them stop at the same batch, whichever of them
    receives the signal; Ctrl-C is passed on to it. Outside of the loop over batches there is nothing to finish, and the
    signals have their usual effect.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._heard_interruptions = 0
        self._handled_interruptions = 0
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "PreemptionNotice":
        if threading.current_thread() is threading.main_thread():
            self._held.enter_context(listening(self._heard))
            for number in [signal.SIGINT] + [signal.SIGTERM] * (jax.process_count() == 1):
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):  # scripts start programs in the background without Ctrl-C
                    signal.signal(number, self._handle)
                    self._held.callback(signal.signal, number, before)
        return self

    def __exit__(self, *_: Any) -> None:
        self._held.close()

    def _note(self, number: int) -> None:
        if self._received is None:
            self._received = signal.Signals(number)

    def _handle(self, number: int, *_: Any) -> None:
        """Handles a signal in the main thread, once that returns to Python."""
        self._note(number)
        self._handled_interruptions += number == signal.SIGINT
        if max(self._handled_interruptions, self._heard_interruptions) > 1:
            raise KeyboardInterrupt

    def _heard(self, number: int) -> None:
        """Answers a signal at once, in a thread, while the main thread may be in the middle of a batch."""
        self._note(number)
        if number == signal.SIGTERM:
            write_line("SIGTERM: this batch is finished and saved, then the run stops")
        if number != signal.SIGINT:
            return
        self._heard_interruptions += 1
        if self._heard_interruptions > 1:
            if Interruption.active:  # a notebook keeps its variables, and ends the batch when that returns to Python
                abandon("interrupted; what was saved before stays")
            return
        write_line("Ctrl-C: this batch is finished and saved, then the run stops; press it again to stop at once")
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # for jax's service

    def came(self, batch: int) -> signal.Signals | None:
        """Returns the signal after which to stop, or None to continue.

        Args:
          batch: number of the batch that is finished; every process asks after every batch, and all receive the same
            answer.
        """
        if jax.process_count() == 1:
            return self._received
        if not multihost_utils.reached_preemption_sync_point(batch):
            return None
        interrupted = multihost_utils.process_allgather(np.asarray(self._received == signal.SIGINT))
        return signal.SIGINT if interrupted.any() else signal.SIGTERM

    def came_meanwhile(self) -> signal.Signals | None:
        """Returns what `came` would return now, after the same batch; several processes ask only once for each."""
        return self._received if jax.process_count() == 1 else None

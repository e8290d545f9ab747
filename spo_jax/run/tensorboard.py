"""TensorBoard's event file, which is written immediately."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spo_jax.core.typing import UInt8


@contextlib.contextmanager
def hidden(module: str) -> Iterator[None]:
    """Lets the imports of a block see ``module`` as not installed, unless it has been imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # an import of it raises ModuleNotFoundError
    try:
        yield
    finally:
        del sys.modules[module]


# For a type annotation, tensorboardX imports torch where it is installed: a second, and hundreds of megabytes.
with hidden("torch"):
    from tensorboardX import summary
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog


class Board:
    """An event file.

    tensorboardX's own `SummaryWriter` writes in a thread, which a full disk kills: the run would then wait for it
    forever.

    Args:
      folder: the folder of event files; it is created if it is missing.
      purge_step: TensorBoard hides what earlier runs wrote for this and later steps.

    Raises:
      OSError: here and in every method, if the file cannot be written.
    """

    def __init__(self, folder: Path, purge_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        # File names hold only seconds, and a run that is resumed quickly must not overwrite the earlier file.
        self._events = EventsWriter(str(folder / "events"), f".{purge_step}")
        self._event(purge_step, file_version="brain.Event:2")
        self._event(purge_step, session_log=SessionLog(status=SessionLog.START))
        self._events.flush()

    def write(self, step: int, scalars: Mapping[str, int | float]) -> None:
        """Adds scalars by name."""
        self._add(step, (summary.scalar(name, value) for name, value in scalars.items()))

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "h w 3"]]) -> None:
        """Adds images by name."""
        self._add(step, (summary.image(name, image, dataformats="HWC") for name, image in images.items()))

    def close(self) -> None:
        """Closes the file, which already holds everything that was written."""
        self._events.close()

    def _add(self, step: int, summaries: Iterable[Any]) -> None:
        for value in summaries:
            self._event(step, summary=value)
        self._events.flush()

    def _event(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(step=step, wall_time=time.time(), **content))

"""Curves, images and the summary of a run on Weights & Biases, in addition to the files in the run's folder.

This logging never ends a run: the first failure shows a warning, and nothing more is sent. ``WANDB_MODE`` and the other
variables of the library have their usual effect, so ``WANDB_MODE=offline`` writes into the run's folder for later.
"""

import importlib
import importlib.util
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from spo_jax.core.errors import missing_extra
from spo_jax.core.files import write_json
from spo_jax.core.typing import UInt8
from spo_jax.run.settings import LogSettings

_ID_FILE = "wandb.json"  # holds the id of the run there, so that a resumed run continues its curves


def check_installed(log: LogSettings) -> None:
    """Raises a `UserError` if the settings ask for Weights & Biases and the library is not installed."""
    if not log.wandb:
        return
    spec = importlib.util.find_spec("wandb")
    # A folder of that name, such as the library itself makes, is found as a package without an origin.
    if spec is None or spec.origin is None:
        raise missing_extra(f"config field log.wandb = {log.wandb!r} needs wandb", "wandb")


class WandbLog:
    """A run on Weights & Biases.

    Args:
      folder: the run's folder.
      log: settings that name the project, the user and the run.
      config: the resolved settings.
      resuming: whether to continue the curves of the run that this folder holds.
    """

    def __init__(self, folder: Path, log: LogSettings, config: Mapping[str, Any], resuming: bool):
        self._run: Any = None
        self._failed = False
        self._guarded(lambda: self._start(folder, log, config, resuming))

    def _start(self, folder: Path, log: LogSettings, config: Mapping[str, Any], resuming: bool) -> None:
        wandb = importlib.import_module("wandb")
        file = folder / _ID_FILE
        earlier = json.loads(file.read_text())["id"] if resuming and file.is_file() else None
        self._run = wandb.init(
            project=log.wandb,
            entity=log.wandb_entity or None,
            name=log.wandb_name or folder.resolve().name,
            id=earlier,
            resume="allow" if earlier else None,
            config=dict(config),
            dir=str(folder),
        )
        write_json(file, {"id": self._run.id})

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Adds a point to every curve, except for values that are not finite."""
        finite = {name: value for name, value in row.items() if value is not None and math.isfinite(value)}
        self._guarded(lambda: self._run.log(finite, step=step))

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "h w 3"]]) -> None:
        """Adds images."""

        def send() -> None:
            wandb = importlib.import_module("wandb")
            self._run.log({name: wandb.Image(image) for name, image in images.items()}, step=step)

        self._guarded(send)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Sends the content of ``summary.json``, which the run's page shows as its result."""
        self._guarded(lambda: self._run.summary.update(dict(summary)))

    def close(self, failed: bool = False) -> None:
        """Finishes the run on Weights & Biases, as a failed one if it failed or was preempted."""
        self._guarded(lambda: self._run.finish(exit_code=int(failed)))

    def _guarded(self, send: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            send()
        except Exception as error:  # no fault of the network, the service or the library may end the run
            logging.warning("Weights & Biases: %s: %s; nothing more is sent there", type(error).__name__, error)
            self._failed = True

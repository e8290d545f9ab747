"""Curves, images and the summary of a run on Weights & Biases, beside the files that it leaves behind.

Logging there never ends a run: after the first failure a warning is shown and nothing more is sent. ``WANDB_MODE`` and
the other variables of the library are honoured, so ``WANDB_MODE=offline`` writes into the run's folder for later.
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

from spo_jax.core.errors import UserError
from spo_jax.core.files import write_json
from spo_jax.core.typing import UInt8
from spo_jax.run.settings import LogSettings

_ID_FILE = "wandb.json"  # the id of the run there, so that a resumed run continues its curves


def check_installed(log: LogSettings) -> None:
    """Raises a `UserError` if the settings ask for Weights & Biases and the library is not installed."""
    if log.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError(f"config field log.wandb = {log.wandb!r} needs wandb: pip install 'spo_jax[wandb]'")


class WandbLog:
    """One run on Weights & Biases.

    Args:
      folder: the run's folder.
      log: names project, user and run.
      config: the resolved settings.
      resuming: continue the curves of the run that this folder holds.
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
        """Adds a point to every curve; values that are not finite are left out."""
        finite = {name: value for name, value in row.items() if value is not None and math.isfinite(value)}
        self._guarded(lambda: self._run.log(finite, step=step))

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "h w 3"]]) -> None:
        """Adds images."""

        def send() -> None:
            wandb = importlib.import_module("wandb")
            self._run.log({name: wandb.Image(image) for name, image in images.items()}, step=step)

        self._guarded(send)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Sets what the run's page shows as its result: the content of ``summary.json``."""
        self._guarded(lambda: self._run.summary.update(dict(summary)))

    def close(self) -> None:
        """Ends the run there."""
        self._guarded(lambda: self._run.finish())

    def _guarded(self, send: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            send()
        except Exception as error:  # the network, the service, the library: none of them may cost the run
            logging.warning("Weights & Biases: %s: %s; nothing more is sent there", type(error).__name__, error)
            self._failed = True

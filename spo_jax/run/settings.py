"""Settings that every run has, independent of its method."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from spo_jax.core.config import MAX_COUNT, Settings, seed_setting, setting
from spo_jax.core.errors import UserError
from spo_jax.parallel.settings import MeshSettings


@dataclasses.dataclass(frozen=True)
class LogSettings(Settings):
    """Checkpoints, evaluations and logs during training; intervals are counted in batches."""

    GROUP: ClassVar = "log."

    checkpoint_every: int = setting(
        50, "Batches between two checkpoints (0: only after the last).", at_least=0, at_most=MAX_COUNT
    )
    keep_checkpoints: int = setting(3, "Number of latest checkpoints to keep.", at_least=1, at_most=MAX_COUNT)
    keep_every: int = setting(
        0, "Also keep checkpoints at multiples of this number of batches (0: none).", at_least=0, at_most=MAX_COUNT
    )
    eval_every: int = setting(
        50, "Batches between two evaluations (0: only after the last).", at_least=0, at_most=MAX_COUNT
    )
    wandb: str = setting("", "Project of Weights & Biases to log to (empty: none); needs the extra wandb.")
    wandb_entity: str = setting("", "User or team that owns the project (empty: your default).")
    wandb_name: str = setting("", "Name of the run there (empty: the name of the output folder).")


@dataclasses.dataclass(frozen=True)
class RunSettings(Settings):
    """Base class of every method's settings.

    Attributes:
      FREE_FIELDS: fields that may differ between a run and its resumption; they change no numbers except by rounding.
      LENGTH: fields that say how long the run is, 0 for no limit; twice their values are twice as many batches.
      BATCHES: fields that hold a batch size over all devices, with the name of what the batch consists of.
    """

    FREE_FIELDS: ClassVar[Sequence[str]] = ("log", "mesh")
    LENGTH: ClassVar[Sequence[str]] = ()
    BATCHES: ClassVar[Mapping[str, str]] = {}

    method: str = setting("spo", "Training method: a name in spo_jax.methods, or a dotted path of your own.")
    seed: int = seed_setting(0, "Seed of everything that is drawn.")
    mesh: MeshSettings = MeshSettings()
    log: LogSettings = LogSettings()

    @property
    def data(self) -> str:
        """Name of the training data, for messages."""
        return "the training data"

    def batch_sizes(self) -> dict[str, int]:
        """Returns the value of every field in `BATCHES`."""
        sizes = {}
        for field in self.BATCHES:
            group, _, name = field.rpartition(".")
            sizes[field] = getattr(getattr(self, group) if group else self, name)
        return sizes

    def with_batch_sizes(self, sizes: Mapping[str, int]) -> "RunSettings":
        """Returns the settings with other values of fields in `BATCHES`."""
        changed = self
        for field, size in sizes.items():
            group, _, name = field.rpartition(".")
            if group:
                changed = dataclasses.replace(
                    changed, **{group: dataclasses.replace(getattr(changed, group), **{name: size})}
                )
            else:
                changed = dataclasses.replace(changed, **{name: size})
        return changed


def check_settings(settings: Any, kind: type[RunSettings] = RunSettings, example: str = "") -> None:
    """Refuses what is no settings of a method, above all a config whose ranges nobody has checked.

    Args:
      settings: what a caller from Python passes as settings.
      kind: class of the settings that are needed.
      example: a config of them, for the message.

    Raises:
      UserError: the settings have not been read, or belong to another method.
    """
    if not isinstance(settings, RunSettings):
        raise UserError(f"settings are a {type(settings).__name__}: pass spo_jax.read_settings(config)")
    if not isinstance(settings, kind):
        expected = f"expected one of method {kind().method!r}, such as {example}"
        raise UserError(f"--config: {expected}, found method {settings.method!r}")

"""The data of a judge's training: preference pairs to train on and pairs to measure on, and what is measured."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from spo_jax.core.typing import Float
from spo_jax.data.preferences.format import Preferences, open_preferences
from spo_jax.methods.common.preference.settings import JudgeTrainSettings

# By timestep, the contribution of every pair to the accuracy: 1, ½ or 0.
Agreement = Mapping[int, Float[np.ndarray, " n"]]
ACCURACY = "accuracy.json"


class PairData(NamedTuple):
    """The data of a run, which are two prepared splits.

    Attributes:
      train: pairs to train on.
      held_out: pairs to measure on.
    """

    train: Preferences
    held_out: Preferences

    @property
    def digests(self) -> list[str]:
        """The digest of the training pairs."""
        return [self.train.digest]

    @property
    def parts(self) -> dict[str, list[str]]:
        """What every process has to read alike, by the field that names it."""
        return {"train_split": [self.train.digest], "eval_split": [self.held_out.digest]}


def read_data(settings: JudgeTrainSettings) -> PairData:
    """Opens both splits.

    Raises:
      UserError: a split is missing or is not a prepared split.
    """
    fields = ("train_split", "eval_split")
    return PairData(*(open_preferences(settings.data_dir, getattr(settings, field), field) for field in fields))

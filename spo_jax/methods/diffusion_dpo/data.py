"""The data of Diffusion-DPO: preference pairs, and the prompts of the images before and after."""

from typing import NamedTuple

import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Bool
from spo_jax.data.preferences.format import Preferences, open_preferences
from spo_jax.data.prompts import load_prompts
from spo_jax.methods.diffusion_dpo.settings import DPOTrainSettings


class PairData(NamedTuple):
    """The data of a run.

    Attributes:
      train: the prepared split.
      eval_prompts: prompts of the images before and after training.
    """

    train: Preferences
    eval_prompts: list[str]

    @property
    def digests(self) -> list[str]:
        """The digest of the training pairs."""
        return [self.train.digest]

    @property
    def parts(self) -> dict[str, list[str]]:
        """What every process has to read alike, by the field that names it."""
        return {"train_split": self.digests, "eval.prompts": self.eval_prompts}


def read_data(settings: DPOTrainSettings) -> PairData:
    """Opens the split and reads the prompts.

    Raises:
      UserError: the split is missing or is not a prepared split, its labels decide no pair although the objective needs
        them, or the prompts cannot be read.
    """
    pairs = open_preferences(settings.data_dir, settings.train_split, "train_split")
    if not settings.dpo.reward and not decided(pairs).any():
        judged = int(pairs.has_label.sum())
        raise UserError(
            f"{pairs.folder}: none of its {len(pairs)} pairs has a winner ({len(pairs) - judged} without a label, "
            f"{judged} ties): choose another split with --config.train_split, or let a reward label the pairs with "
            "--config.dpo.objective=smpo --config.dpo.reward=NAME"
        )
    return PairData(pairs, load_prompts(settings.eval.prompts))


def decided(pairs: Preferences) -> Bool[np.ndarray, " n"]:
    """Says of each pair whether somebody preferred one of its images; there is nothing to learn from the others."""
    return pairs.has_label & (pairs.labels[:, 0] != pairs.labels[:, 1])

"""The data of methods that draw their own images: prompts to train on, and those of the images before and after."""

from typing import NamedTuple

from spo_jax.data.prompts import load_prompts
from spo_jax.methods.common.settings import OnlineSettings


class PromptData(NamedTuple):
    """The data of a run.

    Attributes:
      prompts: prompts to train on.
      eval_prompts: prompts of the images before and after training.
    """

    prompts: list[str]
    eval_prompts: list[str]

    @property
    def digests(self) -> list[str]:
        """The training prompts themselves, which identify the data."""
        return self.prompts

    @property
    def parts(self) -> dict[str, list[str]]:
        """What every process has to read alike, by the field that names it."""
        return {"prompts": self.prompts, "eval.prompts": self.eval_prompts}


def read_data(settings: OnlineSettings) -> PromptData:
    """Reads both lists of prompts.

    Raises:
      UserError: a file is missing or is not a list of prompts.
    """
    return PromptData(load_prompts(settings.prompts), load_prompts(settings.eval.prompts))

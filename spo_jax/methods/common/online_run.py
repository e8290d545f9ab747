"""The base of runs of methods that draw their own images from training prompts."""

import functools
from collections.abc import Generator

import jax
import numpy as np

from spo_jax.core.rows import take_rows
from spo_jax.core.typing import Int, Key, Params
from spo_jax.methods.common.adapter import AdapterRun
from spo_jax.methods.common.online import FrozenParams, OnlineModel, PromptFeatures
from spo_jax.methods.common.order import batch_rows
from spo_jax.methods.common.prompts import PromptData
from spo_jax.rewards.base import Reward

# Jitted, for keys that lie on the devices of several processes.
_fold_in = jax.jit(jax.random.fold_in)
_split = jax.jit(lambda key: tuple(jax.random.split(key)))


class OnlineRun(AdapterRun):
    """The part of a run that feeds batches of prompts to a model; see `spo_jax.methods.base.Run`.

    Args:
      model: the method bound to its models.
      data: the prompts; None makes an abstract run.
      shared: as in `AdapterRun`.
      judge: as in `AdapterRun`.
    """

    def __init__(
        self, model: OnlineModel, data: PromptData | None, shared: dict[str, Reward], judge: Reward | None
    ):  # fmt: skip
        super().__init__(model.settings, model.pipeline, model.mesh, data and data.eval_prompts, shared, judge)
        self.model = model
        self._data = data
        self.total = self.settings.total_batches(len(data.prompts)) if data else 0

    @functools.cached_property
    def _frozen(self) -> FrozenParams:
        """What the programs read and training does not change."""
        return self.model.frozen()

    def idle_params(self) -> Params:
        """Returns the weights that stay on the devices although no program takes them.

        They are those of the text encoders, and of the autoencoder if the judge does not take it.
        """
        decoder = self.model.judge.params.get("decoder")
        return {name: tree for name, tree in super().idle_params().items() if tree is not decoder}

    def prompt_batches(self, start: int) -> Generator[tuple[Int[np.ndarray, " b"], PromptFeatures], None, None]:
        """Yields the rows of each batch's prompts among all of them, and their features on the devices."""
        jax.block_until_ready(self._frozen)  # encoded before the loop, in which nothing compiles
        count = len(self._data.prompts)
        features = self.model.features(self._data.prompts)
        settings = self.settings
        for number in range(start, self.total):
            rows = batch_rows(settings.seed, count, settings.prompts_per_batch, number)
            yield rows, self.model.feed(take_rows(features, rows))


def batch_key(key: Key, number: int) -> Key:
    """Returns the key of a batch, which follows from the run's key and the batch's number."""
    return _fold_in(key, np.int32(number))


def program_keys(key: Key) -> tuple[Key, Key]:
    """Splits the key of a batch into those of its two programs."""
    return _split(key)

"""A model that draws from the training prompts, and its judge, as arguments of programs."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.progress import stage
from spo_jax.core.typing import Params, PyTree
from spo_jax.core.words import counted
from spo_jax.diffusion.process import Process
from spo_jax.methods.common.settings import OnlineSettings
from spo_jax.models.base import Pipeline
from spo_jax.parallel.mesh import over_batch, replicated
from spo_jax.parallel.sharding import place, shapes_of


class FrozenParams(NamedTuple):
    """Everything that the programs read and training does not change; arguments of the programs, not constants.

    Attributes:
      network: base weights of the trained network.
      judge: weights of the judge, its attribute ``params``.
      unconditional: encoded unconditional input of guidance, one row.
    """

    network: Params
    judge: Params
    unconditional: PyTree


class PromptFeatures(NamedTuple):
    """Features of prompts, computed once for all prompts and kept on the host; a batch takes some of their rows.

    Attributes:
      condition: encoded prompts, on which the model is conditioned.
      judge: the judge's features of prompts.
    """

    condition: PyTree
    judge: PyTree


@runtime_checkable
class PromptJudge(Protocol):
    """What a judge needs of prompts: `spo_jax.methods.common.judge.Judge`, and what judges finished images."""

    @property
    def params(self) -> Params:
        """The weights, which are an argument of programs."""
        ...

    def features(self, prompts: Sequence[str]) -> PyTree:
        """Computes the features of prompts that scores need, one row each, on the host."""
        ...

    def feature_shapes(self) -> PyTree:
        """Returns the shapes of one row of `features`."""
        ...


@dataclasses.dataclass(frozen=True)
class OnlineModel:
    """The base of methods that draw their own images: model and judge, and the inputs of the programs.

    A subclass defines `process`.

    Attributes:
      settings: settings of the run.
      pipeline: the model to train.
      judge: says what drawn images are worth.
      mesh: mesh on which the weights lie; None if they lie on the first device.

    Raises:
      UserError: the model's last sampling step is at t = 0.
    """

    settings: OnlineSettings
    pipeline: Pipeline
    judge: PromptJudge
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        if self.process.timesteps[-1] <= 0:  # a step from t = 0 to t = 0 has a standard deviation of 0 and makes NaNs
            raise UserError(
                f"{self.pipeline.folder}: the last sampling step of its scheduler is at t = 0 and has no likelihood; "
                "expected 'leading' spacing with steps_offset 1, or 'trailing'"
            )

    @property
    def process(self) -> Process:
        """The diffusion process, divided into the rollout's steps."""
        raise NotImplementedError

    def frozen(self) -> FrozenParams:
        """Returns the weights that the programs take."""
        row = self.pipeline.encode_unconditional()
        unconditional = place(row, replicated(self.mesh)) if self.mesh else jax.device_put(row)
        return FrozenParams(self.pipeline.params[self.pipeline.TRAINED], self.judge.params, unconditional)

    def features(self, prompts: Sequence[str]) -> PromptFeatures:
        """Encodes prompts for the model and for the judge."""
        with stage(f"encoding {counted(len(prompts), 'training prompt')}"):
            return PromptFeatures(self.pipeline.encode_prompts(prompts), self.judge.features(prompts))

    def feed(self, rows: PromptFeatures) -> PromptFeatures:
        """Moves a batch's rows from the host to the devices, each prompt to the device that works on it."""
        return place(rows, over_batch(self.mesh)) if self.mesh else jax.device_put(rows)

    def frozen_shapes(self) -> FrozenParams:
        """Returns the shapes of `frozen`; the pipeline may be abstract."""
        unconditional = _rows(1, self._condition_shapes(), replicated(self.mesh) if self.mesh else None)
        network = shapes_of(self.pipeline.params[self.pipeline.TRAINED])
        return FrozenParams(network, shapes_of(self.judge.params), unconditional)

    def feature_shapes(self) -> PromptFeatures:
        """Returns the shapes of one batch, with the shardings that `feed` gives it."""
        one = PromptFeatures(self._condition_shapes(), self.judge.feature_shapes())
        return _rows(self.settings.prompts_per_batch, one, over_batch(self.mesh) if self.mesh else None)

    def _condition_shapes(self) -> PyTree:
        ids = jax.ShapeDtypeStruct((1, *self.pipeline.token_shape), "int32")
        return jax.eval_shape(self.pipeline.encode_tokens, self.pipeline.text_params, ids)


def _rows(count: int, one: PyTree, sharding: jax.sharding.Sharding | None) -> PyTree:
    """Returns the shapes of ``count`` rows like the single row of ``one``."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype, sharding=sharding), one)

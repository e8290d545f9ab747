"""What evaluation and methods need to know of a reward: a score of images or latents and their prompts."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.trees import take_rows
from spo_jax.core.typing import Array, DType, Float, Int, Params, PyTree
from spo_jax.parallel.chunks import in_chunks
from spo_jax.parallel.mesh import gathered

_CHUNK = 25  # images scored at a time

Scores = dict[str, Float[np.ndarray, " b"]]


@dataclasses.dataclass(frozen=True)
class Context:
    """What a reward may depend on when it is loaded.

    Attributes:
      kind: `Pipeline.kind` of the model whose images are scored; None asks for nothing.
      dtype: of weights and activations.
      mesh: where weights go; None is the first device.
      options: fields of the settings' group that is named after the reward.
      abstract: give shapes instead of weights.
      field: the config field that names the reward, for messages.
    """

    kind: str | None = None
    dtype: DType = jnp.float32
    mesh: Mesh | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    abstract: bool = False
    field: str = "eval.rewards"


@runtime_checkable
class Reward(Protocol):
    """One reward, ready to score.

    A reward is a module of `spo_jax.rewards` (or of a user's own) with a function ``load(source, context)`` that gives
    an object like this one. ``source`` is what stands behind a colon after the reward's name, and may be empty.

    Attributes:
      meanings: a sentence for every score that `measure` gives, by name.
      lower_is_better: names of scores that improve by falling.
    """

    meanings: Mapping[str, str]
    lower_is_better: Sequence[str]

    def check(self, prompts: Sequence[str], size: tuple[int, int]) -> None:
        """Raises a `UserError` if images of (height, width) for these prompts cannot be scored."""
        ...

    def measure(self, images: Float[np.ndarray, "b h w 3"], prompts: Sequence[str]) -> Scores:
        """Scores of finished images near [-1, 1], by name."""
        ...


class DeviceReward:
    """Base of rewards that are computed on the devices, one score per image: they can evaluate, and judge in rollouts.

    A subclass sets `meanings` with one entry and defines `score`; the rest has defaults.

    Attributes:
      READS: ``images`` near [-1, 1], or ``latents`` as the diffusion model sees them.
      params: weights, an argument of programs and not a constant in them.
    """

    READS: ClassVar[str] = "images"
    meanings: Mapping[str, str] = {}
    lower_is_better: Sequence[str] = ()
    params: Params = {}

    def features(self, prompts: Sequence[str]) -> PyTree:
        """What `score` needs of prompts, a row each; computed once per prompt, on the host. None needs nothing."""
        return None

    def feature_shapes(self) -> PyTree:
        """Shapes of one row of `features`, for programs that are compiled before there are prompts."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.features(["a prompt"]))

    def score(
        self, params: Params, x: Float[Array, "b h w c"], features: PyTree, t: Int[Array, " b"]
    ) -> Float[Array, " b"]:
        """Scores inside a program.

        Args:
          params: as the attribute.
          x: what the reward reads; of images in a rollout, the clean predictions.
          features: rows of `features`.
          t: diffusion timesteps that predictions were made from; 0 for finished images.
        """
        raise NotImplementedError

    def check(self, prompts: Sequence[str], size: tuple[int, int]) -> None:
        """Any prompts and sizes can be scored."""

    def measure(self, images: Float[np.ndarray, "b h w 3"], prompts: Sequence[str]) -> Scores:
        """Scores of finished images, by name.

        Raises:
          UserError: the reward reads latents.
        """
        (name,) = self.meanings
        if self.READS != "images":
            raise UserError(f"reward {name} reads {self.READS}, and evaluation has images: name another reward")
        features = self.features(prompts)

        def score(rows: Int[np.ndarray, " b"]) -> Array:
            return self._score_finished(self.params, images[rows], take_rows(features, rows))

        return {name: in_chunks(score, np.arange(len(images)), _CHUNK)}

    @functools.cached_property
    def _score_finished(self) -> Callable[..., Array]:
        def score(params: Params, images: Float[Array, "b h w 3"], features: PyTree) -> Float[Array, " b"]:
            return gathered(self.score(params, images, features, jnp.zeros(len(images), jnp.int32)))

        return jax.jit(score)

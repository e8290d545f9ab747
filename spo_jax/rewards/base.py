"""What rewards are made of: the protocol, and the base class of rewards that are computed on the devices."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.rows import take_rows
from spo_jax.core.typing import Array, Float, Int, Params, PyTree
from spo_jax.parallel.chunks import in_chunks
from spo_jax.parallel.mesh import gathered
from spo_jax.rewards.common.protocol import Context, Reward, Scores

__all__ = ["Context", "DeviceReward", "Reward", "Scores"]

_CHUNK = 25  # number of images scored at a time


class DeviceReward:
    """Base class of rewards with one score per image that is computed on the devices.

    Such a reward can evaluate finished images, and judge clean predictions in rollouts. A subclass sets `meanings` with
    one entry and defines `score`; everything else has a default.

    Attributes:
      READS: input of `score`: ``images`` near [-1, 1], or ``latents`` as the diffusion model sees them.
      meanings: as in `Reward`.
      lower_is_better: as in `Reward`.
      params: weights, which are an argument of programs and not a constant in them.
    """

    READS: ClassVar[str] = "images"
    meanings: Mapping[str, str] = {}
    lower_is_better: Sequence[str] = ()
    params: Params = {}

    def features(self, prompts: Sequence[str]) -> PyTree:
        """Computes the features of prompts that `score` takes, one row each, on the host and once per prompt.

        The default is None, for a score that does not depend on the prompt.
        """
        return None

    def feature_shapes(self) -> PyTree:
        """Returns the shapes of one row of `features`, for programs that are compiled before there are prompts."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.features(["a prompt"]))

    def score(
        self, params: Params, x: Float[Array, "b h w c"], features: PyTree, t: Int[Array, " b"]
    ) -> Float[Array, " b"]:
        """Scores images or latents inside a program.

        Args:
          params: the attribute `params`.
          x: finished images, or clean predictions in a rollout; images or latents, as `READS` says.
          features: rows of `features`.
          t: diffusion timesteps from which the predictions were made; 0 for finished images.
        """
        raise NotImplementedError

    def check(self, prompts: Sequence[str], size: tuple[int, int]) -> None:
        """Accepts all prompts and sizes.

        Raises:
          UserError: the reward reads latents, and what is to be scored are images.
        """
        if self.READS != "images":
            names = ", ".join(self.meanings)
            raise UserError(f"reward {names} reads {self.READS}, but evaluation has images: choose another reward")

    def measure(self, images: Float[np.ndarray, "b h w 3"], prompts: Sequence[str]) -> Scores:
        """Scores finished images; returns the scores by name."""
        (name,) = self.meanings
        features = self.features(prompts)

        def score(rows: Int[np.ndarray, " b"]) -> Array:
            return self._score_finished(self.params, images[rows], take_rows(features, rows))

        return {name: in_chunks(score, np.arange(len(images)), _CHUNK)}

    @functools.cached_property
    def _score_finished(self) -> Callable[..., Array]:
        def score(params: Params, images: Float[Array, "b h w 3"], features: PyTree) -> Float[Array, " b"]:
            return gathered(self.score(params, images, features, jnp.zeros(len(images), jnp.int32)))

        return jax.jit(score)

"""What rewards are made of: the protocol, and the base class of rewards that are computed on the devices."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from spo_jax.core.errors import UserError
from spo_jax.core.rows import take_rows
from spo_jax.core.typing import Array, Float, Int, Params, PyTree
from spo_jax.parallel.chunks import in_chunks
from spo_jax.parallel.compiling import device_jit
from spo_jax.parallel.mesh import devices_in_context, gathered, spread_rows
from spo_jax.parallel.sizes import padded_chunk
from spo_jax.rewards.common.protocol import Context, Reward, Scores

__all__ = ["Context", "DeviceReward", "EmbeddingReward", "Reward", "Scores", "in_equal_chunks"]

_CHUNK = 25  # number of images that a device scores at a time
_KEPT_PROMPTS = 4096  # whose features are kept on the host: 16 MB of those of a ViT-H, the prompts of every protocol


class DeviceReward:
    """Base class of rewards with one score per image that is computed on the devices.

    Such a reward can evaluate finished images, and judge clean predictions in rollouts. A subclass sets `meanings` with
    one entry and defines `score`; everything else has a default.

    Attributes:
      READS: input of `score`: ``images`` near [-1, 1], clean ``latents`` as the diffusion model sees them, or ``noisy
        latents``, the candidates of a rollout as they are.
      meanings: as in `Reward`.
      lower_is_better: as in `Reward`.
      signs: as in `Reward`.
      params: weights, which are an argument of programs and not a constant in them.
    """

    READS: ClassVar[str] = "images"
    meanings: Mapping[str, str] = {}
    lower_is_better: Sequence[str] = ()
    signs: Sequence[str] = ()
    params: Params = {}

    def describe(self) -> Mapping[str, Any]:
        """Returns what decides on the scores besides `params` and the code, as JSON; see `Reward`."""
        return {}

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
          x: finished images, or clean predictions in a rollout; images or latents, as `READS` says; or noisy latents.
          features: rows of `features`.
          t: diffusion timesteps from which the predictions were made; 0 for finished images. For noisy latents, those
            of the steps that drew them.
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
        """Scores finished images on all devices that hold the weights; returns the scores by name.

        A prompt that several images have is encoded once, and not again in later calls. An image that is not finite has
        the score NaN.
        """
        (name,) = self.meanings
        with self._on_devices():
            known = self._features_of(prompts)

            def score(rows: Int[np.ndarray, " b"]) -> Array:
                features = jax.tree.map(lambda *x: np.concatenate(x), *(known[prompts[row]] for row in rows))
                return self._score_finished(self.params, images[rows], features)

            return {name: in_equal_chunks(score, len(images))}

    def _features_of(self, prompts: Sequence[str]) -> dict[str, PyTree]:
        """Returns the features of prompts, one row each, and computes those that are not kept from earlier calls."""
        wanted = list(dict.fromkeys(prompts))
        if len(self._kept.keys() | wanted) > _KEPT_PROMPTS:
            self.forget_prompts()
        new = [prompt for prompt in wanted if prompt not in self._kept]
        if new:
            features = self.features(new)
            self._kept.update((prompt, take_rows(features, np.array([row]))) for row, prompt in enumerate(new))
        return {prompt: self._kept[prompt] for prompt in wanted}

    def forget_prompts(self) -> None:
        """Gives up the features of prompts that are kept, so that they are computed again."""
        self._kept.clear()

    @functools.cached_property
    def _kept(self) -> dict[str, PyTree]:
        return {}

    @functools.cached_property
    def _score_finished(self) -> Callable[..., Array]:
        def score(params: Params, images: Float[Array, "b h w 3"], features: PyTree) -> Float[Array, " b"]:
            t = jnp.zeros(len(images), jnp.int32)
            scores = self.score(params, spread_rows(images), features, t)
            # A reward that rounds images to bytes would give a finite score to one that is not finite.
            return gathered(jnp.where(jnp.isfinite(images).all((1, 2, 3)), scores, jnp.nan))

        return _measurement(score)

    def _on_devices(self) -> contextlib.AbstractContextManager:
        """Puts the mesh on which the weights lie in context, for callers that have not done so."""
        shardings = [getattr(x, "sharding", None) for x in jax.tree.leaves(self.params)]
        mesh = next((sharding.mesh for sharding in shardings if isinstance(sharding, NamedSharding)), None)
        return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


class EmbeddingReward(DeviceReward):
    """Base class of rewards that have features of an image without its prompt; a subclass defines `image_features`."""

    def image_features(self, params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b p"]:
        """Computes the features of images near [-1, 1], of length 1, inside a program."""
        raise NotImplementedError

    def embed(self, images: Float[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b p"]:
        """Computes the features of finished images near [-1, 1], of length 1, on the host."""
        with self._on_devices():
            return in_equal_chunks(lambda rows: self._embed(self.params, images[rows]), len(images))

    @functools.cached_property
    def _embed(self) -> Callable[..., Array]:
        def embed(params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b p"]:
            return gathered(self.image_features(params, spread_rows(images)))

        return _measurement(embed)


def _measurement(function: Callable[..., Array]) -> Callable[..., Array]:
    """Compiles a measurement, whose products are in float32 on every device where the network is.

    A score that is published has to be the same on all machines (see `docs/parity.md`); a rollout's need not.
    """

    @functools.wraps(function)
    def measure(*arguments: Any) -> Array:
        with jax.default_matmul_precision("highest"):
            return function(*arguments)

    return device_jit(measure)


def in_equal_chunks(function: Callable[[Int[np.ndarray, " b"]], Any], count: int) -> Any:
    """Applies a function of row numbers to the rows of a batch, as many at a time as the devices in context take.

    All chunks have one size, which the devices divide; the last one is filled up with the last row.

    Args:
      function: function of row numbers that returns a tree of arrays with the same leading axis.
      count: number of rows.
    """
    chunk = padded_chunk(count, _CHUNK, devices_in_context())
    rows = np.minimum(np.arange(-(-count // chunk) * chunk), count - 1)
    return jax.tree.map(lambda x: x[:count], in_chunks(function, rows, chunk))

"""The base class of rewards that see an image through a CLIP, such as PickScore and HPSv2."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Array, Float, Int, Params, PyTree
from spo_jax.nn.clip import CLIPModel
from spo_jax.parallel.mesh import gathered, spread_rows
from spo_jax.rewards.base import DeviceReward, in_equal_chunks
from spo_jax.rewards.common.clip_pixels import Pixels
from spo_jax.rewards.common.clip_score import encode_texts, text_features, unit_norm

Tokenize = Callable[[Sequence[str]], Int[np.ndarray, "b l"]]


class CLIPReward(DeviceReward):
    """Scores an image by the cosine between its features and those of its prompt; a subclass may make another score.

    Args:
      name: name of the score.
      meaning: what the score is, in a sentence.
      clip: the network.
      params: its weights.
      tokenize: function from prompts to token ids.
      pixels: function from images to the network's input.
    """

    def __init__(
        self, name: str, meaning: str, *, clip: CLIPModel, params: Params, tokenize: Tokenize, pixels: Pixels
    ):  # fmt: skip
        self.meanings = {name: meaning}
        self.clip = clip
        self.params = params
        self.tokenize = tokenize
        self.pixels = pixels

    def features(self, prompts: Sequence[str]) -> Float[np.ndarray, "b p"]:
        """Computes the text features of prompts, of length 1."""
        return encode_texts(self.clip, self.params, self.tokenize(prompts))

    def feature_shapes(self) -> PyTree:
        """Returns the shape of one row of `features`."""
        ids = jax.ShapeDtypeStruct((1, self.clip.config.text.max_position_embeddings), jnp.int32)
        return jax.eval_shape(functools.partial(text_features, self.clip), self.params, ids)

    def image_features(self, params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b p"]:
        """Computes the features of images near [-1, 1], of length 1, inside a program."""
        pixels = self.pixels(images, self.clip.config.vision.image_size)
        return unit_norm(self.clip.apply({"params": params}, pixels, method="encode_image"))

    def score(
        self, params: Params, x: Float[Array, "b h w 3"], features: Float[Array, "b p"], t: Int[Array, " b"]
    ) -> Float[Array, " b"]:
        """Scores images near [-1, 1]; the timestep has no influence."""
        return self.of_cosine(params, jnp.sum(self.image_features(params, x) * features, axis=-1))

    def of_cosine(self, params: Params, cosine: Float[Array, " b"]) -> Float[Array, " b"]:
        """Makes the score of the cosine; the default is the cosine itself."""
        return cosine

    def embed(self, images: Float[np.ndarray, "b h w 3"]) -> Float[np.ndarray, "b p"]:
        """Computes the features of finished images near [-1, 1], of length 1, on the host."""
        with self._on_devices():
            return in_equal_chunks(lambda rows: self._embed(self.params, images[rows]), len(images))

    @functools.cached_property
    def _embed(self) -> Callable[..., Array]:
        def embed(params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b p"]:
            return gathered(self.image_features(params, spread_rows(images)))

        return jax.jit(embed)

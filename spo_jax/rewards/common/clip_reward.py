"""The base class of rewards that see an image through a CLIP, such as PickScore and HPSv2, and the loader of theirs."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Array, Float, Int, Params, PyTree
from spo_jax.data.original_tokenizer import HF_FAST
from spo_jax.data.tokenizer import AbstractTokenizer, Tokenizer
from spo_jax.nn.clip import CLIPModel
from spo_jax.nn.clip_config import CLIPConfig
from spo_jax.nn.shapes import clip_shapes
from spo_jax.parallel.sharding import abstract_weights, place_weights
from spo_jax.rewards.base import Context, EmbeddingReward
from spo_jax.rewards.common.clip_files import PublishedCLIP, clip_tokenizer
from spo_jax.rewards.common.clip_pixels import Pixels
from spo_jax.rewards.common.clip_score import encode_texts, text_features, unit_norm
from spo_jax.rewards.common.preference_files import local_model, read_config, resolve_model
from spo_jax.rewards.common.preference_model import PreferenceModel, read_tokenizer
from spo_jax.weights import components

Formula = Callable[[Float[Array, " b"], Float[Array, ""]], Float[Array, " b"]]


def bare_cosine(cosine: Float[Array, " b"], scale: Float[Array, ""]) -> Float[Array, " b"]:
    """The formula of a score that is the cosine itself."""
    del scale
    return cosine


def scaled_cosine(cosine: Float[Array, " b"], scale: Float[Array, ""]) -> Float[Array, " b"]:
    """The formula of a score that is a CLIP's logit, exp(logit_scale) · cos."""
    return scale * cosine


class CLIPVisionReward(EmbeddingReward):
    """Base class of rewards that see images through a CLIP.

    Args:
      name: name of the score.
      meaning: what the score is, in a sentence.
      clip: the network.
      params: its weights; those of the vision tower and the scale of its logits suffice here.
      pixels: function from images to the network's input.
    """

    def __init__(self, name: str, meaning: str, *, clip: CLIPModel, params: Params, pixels: Pixels):
        self.meanings = {name: meaning}
        self.clip = clip
        self.params = params
        self.pixels = pixels

    def describe(self) -> Mapping[str, Any]:
        """Returns the network's config."""
        return {"config": dataclasses.asdict(self.clip.config)}

    def image_features(self, params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b p"]:
        """Computes the features of images near [-1, 1], of length 1, inside a program."""
        pixels = self.pixels(images, self.clip.config.vision.image_size)
        return unit_norm(self.clip.apply({"params": params}, pixels, method="encode_image"))


class CLIPReward(CLIPVisionReward):
    """Scores an image by the cosine between its features and those of its prompt.

    Args:
      name: name of the score.
      meaning: what the score is, in a sentence.
      clip: the network.
      params: its weights.
      tokenizer: function from prompts to token ids.
      pixels: function from images to the network's input.
      formula: function from the cosine and exp(logit_scale) to the score.
      prefix: text before every prompt.
    """

    def __init__(
        self,
        name: str,
        meaning: str,
        *,
        clip: CLIPModel,
        params: Params,
        tokenizer: Tokenizer,
        pixels: Pixels,
        formula: Formula = bare_cosine,
        prefix: str = "",
    ):
        super().__init__(name, meaning, clip=clip, params=params, pixels=pixels)
        self.tokenizer = tokenizer
        self.formula = formula
        self.prefix = prefix

    def describe(self) -> Mapping[str, Any]:
        """Returns the network's config and the tokenizer's digest."""
        return {**super().describe(), "tokenizer": self.tokenizer.digest}

    def tokenize(self, prompts: Sequence[str]) -> Int[np.ndarray, "b l"]:
        """Turns prompts into token ids."""
        return self.tokenizer([self.prefix + prompt for prompt in prompts])

    def features(self, prompts: Sequence[str]) -> Float[np.ndarray, "b p"]:
        """Computes the text features of prompts, of length 1."""
        return encode_texts(self.clip, self.params, self.tokenize(prompts))

    def feature_shapes(self) -> PyTree:
        """Returns the shape of one row of `features`."""
        ids = jax.ShapeDtypeStruct((1, self.clip.config.text.max_position_embeddings), jnp.int32)
        return jax.eval_shape(functools.partial(text_features, self.clip), self.params, ids)

    def score(
        self, params: Params, x: Float[Array, "b h w 3"], features: Float[Array, "b p"], t: Int[Array, " b"]
    ) -> Float[Array, " b"]:
        """Scores images near [-1, 1]; the timestep has no influence."""
        cosine = jnp.sum(self.image_features(params, x) * features, axis=-1)
        return self.formula(cosine, self.clip.apply({"params": params}, method="scale"))


def clip_network(source: str, context: Context, published: PublishedCLIP) -> tuple[CLIPModel, Path | None]:
    """Makes the network of a CLIP in transformers' layout; also returns its folder or file.

    Args:
      source: folder, weights file, hub id or one file of a hub repository; empty for what is published.
      context: dtype and mesh, and whether to return shapes instead of weights.
      published: what is published of the reward.

    Returns:
      The network, and where its weights lie; None if the context is abstract and they are not here.

    Raises:
      UserError: the model is missing or another one than a CLIP.
    """
    name = source or published.model
    path = local_model(name) if context.abstract else resolve_model(name)
    config, where = (published.config, name) if path is None else read_config(path, published.config)
    return CLIPModel(CLIPConfig.from_dict(config, where), dtype=context.dtype), path


def clip_weights(clip: CLIPModel, path: Path | None, context: Context) -> Params:
    """Reads the weights of a CLIP, every one and no other, or makes their shapes for an abstract context.

    Raises:
      UserError: they cannot be read, or are those of something else.
    """
    shapes = clip_shapes(clip)
    if context.abstract:
        return abstract_weights(shapes, context.dtype, context.mesh)
    return place_weights(components.load_clip(path, shapes, dtype=context.dtype), context.mesh, title=str(path))


def load_clip(source: str, context: Context, published: PublishedCLIP, tokens: str = HF_FAST) -> PreferenceModel:
    """Reads a CLIP in transformers' layout and its tokenizer; see `clip_network` and `clip_weights`.

    Args:
      source: as in `clip_network`.
      context: as in `clip_network`.
      published: as in `clip_network`.
      tokens: the tokenisation, as `spo_jax.data.original_tokenizer.open_tokenizer` takes it.

    Raises:
      UserError: the model cannot be read, is another one than a CLIP, or its tokenizer belongs to another model.
    """
    clip, path = clip_network(source, context, published)
    params = clip_weights(clip, path, context)
    text = clip.config.text
    if context.abstract:
        return PreferenceModel(clip, params, AbstractTokenizer(text.max_position_embeddings))
    folder = clip_tokenizer(path, published)
    tokenizer = read_tokenizer(folder, clip.config, str(path), tokens)
    tokenizer.check_is_of(text.vocab_size, text.max_position_embeddings, str(path))
    return PreferenceModel(clip, params, tokenizer)

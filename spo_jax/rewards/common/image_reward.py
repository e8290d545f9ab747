"""ImageReward on the devices: its weights, its features of prompts, and its score."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Array, Bool, Float, Int, Params, PyTree
from spo_jax.data.bert_tokenizer import BertTokenizer
from spo_jax.nn.blip import BLIP
from spo_jax.nn.shapes import blip_shapes
from spo_jax.parallel.sharding import abstract_weights, place_weights
from spo_jax.rewards.base import EmbeddingReward
from spo_jax.rewards.common.affine_head import apply_head, fold_head, folded_shapes, head_shapes
from spo_jax.rewards.common.clip_pixels import openai_pixels
from spo_jax.rewards.common.clip_score import unit_norm
from spo_jax.rewards.common.image_reward_files import find_tokenizer, find_weights, local_sizes, read_sizes
from spo_jax.rewards.common.protocol import Context
from spo_jax.weights import rules, store
from spo_jax.weights.components import IGNORED
from spo_jax.weights.kinds import of_keys

LENGTH = 35  # tokens of a prompt, special ones included
MEAN = 0.16717362830052426  # of the head, on the authors' test images
STD = 1.0333394966054072
# The file also has the two projections with which BLIP was trained, which the score does not use.
_IGNORED = (*IGNORED, r"^blip\.(vision|text)_proj\.(weight|bias)$")

Tokens = dict[str, Int[Array | np.ndarray, "b l"] | Bool[Array | np.ndarray, "b l"]]


class ImageReward(EmbeddingReward):
    """Scores an image by BLIP's first token of the prompt that has seen it.

    Args:
      blip: the network.
      params: ``blip``, its weights, and ``head``, the folded head.
      tokenizer: function from prompts to token ids and mask; None for an abstract reward.
    """

    meanings = {
        "image_reward": "ImageReward of the image for its prompt: 0 is average, 1 one standard deviation better"
    }

    def __init__(self, blip: BLIP, params: Params, tokenizer: BertTokenizer | None = None):
        self.blip = blip
        self.params = params
        self.tokenizer = tokenizer

    def describe(self) -> Mapping[str, Any]:
        """Returns the network's sizes and the tokenizer's digest."""
        return {"config": dataclasses.asdict(self.blip.config), "tokenizer": self.tokenizer.digest}

    def features(self, prompts: Sequence[str]) -> Tokens:
        """Computes token ids and their mask: the text encoder sees the image, so nothing else is the prompt's alone."""
        ids, mask = self.tokenizer(prompts)
        return {"ids": ids, "mask": mask}

    def feature_shapes(self) -> PyTree:
        """Returns the shapes of one row of `features`."""
        kinds = {"ids": jnp.int32, "mask": jnp.bool_}
        return {name: jax.ShapeDtypeStruct((1, LENGTH), dtype) for name, dtype in kinds.items()}

    def score(
        self, params: Params, x: Float[Array, "b h w 3"], features: Tokens, t: Int[Array, " b"]
    ) -> Float[Array, " b"]:
        """Scores images near [-1, 1]; the timestep has no influence."""
        pixels = openai_pixels(x, self.blip.config.vision.image_size)
        first = self.blip.apply({"params": params["blip"]}, features["ids"], features["mask"], pixels)
        return (apply_head(params["head"], first) - MEAN) / STD

    def image_features(self, params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b p"]:
        """Computes the class token of images near [-1, 1], of length 1, inside a program."""
        pixels = openai_pixels(images, self.blip.config.vision.image_size)
        tokens = self.blip.apply({"params": params["blip"]}, pixels, method="encode_image")
        return unit_norm(tokens[:, 0])


def load_image_reward(source: str, context: Context) -> ImageReward:
    """Reads ImageReward.

    Args:
      source: as in `spo_jax.rewards.image_reward.load`.
      context: dtype and mesh; the head is float32 in any case.

    Raises:
      UserError: a file is missing or damaged, holds the weights of something else, or does not fit the others.
    """
    file = find_weights(source)
    blip = BLIP(read_sizes(file), dtype=context.dtype)
    weights = _read_weights(file, blip)
    tokenizer = BertTokenizer(find_tokenizer(file), LENGTH)
    tokenizer.check_fits(blip.config.text.vocab_size, str(file))
    return ImageReward(blip, place_weights(weights, context.mesh, title=str(file)), tokenizer)


def _read_weights(file: Path, blip: BLIP) -> Params:
    state = store.read_file(file)
    if not any(name.startswith("blip.") for name in state):
        raise UserError(f"{file} holds the weights of {of_keys(state) or 'something else'}: expected ImageReward's")
    shapes = {"blip": blip_shapes(blip), "mlp": head_shapes(blip.config.text.hidden_size)}
    tree = rules.to_tree(state, shapes, str(file), ignore=_IGNORED)
    network = jax.tree.map(lambda x: x.astype(blip.dtype, copy=False), tree["blip"])
    return {"blip": network, "head": fold_head(tree["mlp"])}


def abstract_image_reward(source: str, context: Context) -> ImageReward:
    """Makes the reward with shapes instead of weights; a source that is not here has the published sizes."""
    config = local_sizes(source)
    blip = BLIP(config, dtype=context.dtype)
    network = abstract_weights(blip_shapes(blip), context.dtype, context.mesh)
    head = abstract_weights(folded_shapes(config.text.hidden_size), jnp.float32, context.mesh)
    return ImageReward(blip, {"blip": network, "head": head})

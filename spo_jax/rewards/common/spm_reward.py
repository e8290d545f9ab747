"""The score of a step-aware preference model as a reward."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Array, Float, Int, Params
from spo_jax.rewards.base import EmbeddingReward
from spo_jax.rewards.common.clip_score import encode_texts, image_features, score_images, text_features
from spo_jax.rewards.common.preference_model import PreferenceModel


class SPMReward(EmbeddingReward):
    """Scores an image by exp(logit_scale) * cos(image, text) at a timestep.

    Args:
      model: the preference model.
      name: its name, for the meaning of the score.
      timestep: timestep at which everything is scored; None takes that of each image, 0 for finished ones.
    """

    def __init__(self, model: PreferenceModel, name: str = "", timestep: int | None = None):
        score = "spm_score" if timestep is None else f"spm_score_{timestep}"
        meaning = f"score of the preference model {name} at timestep {timestep or 0}"
        self.meanings = {score: meaning.replace("  ", " ")}
        self.model = model
        self.params = model.params
        self.timestep = timestep

    def describe(self) -> Mapping[str, Any]:
        """Returns the network's config and the tokenizer's digest."""
        return {"config": dataclasses.asdict(self.model.clip.config), "tokenizer": self.model.tokenizer.digest}

    def features(self, prompts: Sequence[str]) -> Float[np.ndarray, "b p"]:
        """Computes text features of unit length, which do not depend on the timestep."""
        return encode_texts(self.model.clip, self.params, self.model.tokenizer(prompts))

    def feature_shapes(self) -> jax.ShapeDtypeStruct:
        """Returns the shape of one row of `features`."""
        ids = jax.ShapeDtypeStruct((1, self.model.tokenizer.length), jnp.int32)
        return jax.eval_shape(lambda params, ids: text_features(self.model.clip, params, ids), self.params, ids)

    def score(
        self, params: Params, x: Float[Array, "b h w 3"], features: Float[Array, "b p"], t: Int[Array, " b"]
    ) -> Float[Array, " b"]:
        """Scores clean predictions, or finished images at ``t`` = 0; a timestep of the reward's own replaces ``t``."""
        if self.timestep is not None:
            t = jnp.full_like(t, self.timestep)
        return score_images(self.model.clip, params, x, t, features)

    def image_features(self, params: Params, images: Float[Array, "b h w 3"]) -> Float[Array, "b p"]:
        """Computes the features of finished images, of length 1, inside a program."""
        t = jnp.full(len(images), self.timestep or 0, jnp.int32)
        return image_features(self.model.clip, params, images, t)

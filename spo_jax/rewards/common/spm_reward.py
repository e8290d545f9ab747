"""The score of a step-aware preference model as a reward."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Array, Float, Int, Params
from spo_jax.rewards.base import DeviceReward
from spo_jax.rewards.common.clip_score import encode_texts, score_images, text_features
from spo_jax.rewards.common.preference_model import PreferenceModel


class SPMReward(DeviceReward):
    """Scores an image by exp(logit_scale) * cos(image, text) at a timestep."""

    def __init__(self, model: PreferenceModel, name: str = ""):
        self.meanings = {"spm_score": f"score of the preference model {name} at timestep 0".replace("  ", " ")}
        self.model = model
        self.params = model.params

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
        """Scores clean predictions, or finished images at ``t`` = 0."""
        return score_images(self.model.clip, params, x, t, features)

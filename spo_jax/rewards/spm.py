"""The score of a step-aware preference model, which is a CLIP with the diffusion timestep as an input."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax import toy
from spo_jax.core.typing import Array, Float, Int, Params
from spo_jax.rewards.base import Context, DeviceReward
from spo_jax.rewards.common.clip_score import encode_texts, score_images, text_features
from spo_jax.rewards.common.preference_model import PreferenceModel, load_spm


class SPMReward(DeviceReward):
    """Scores an image by exp(logit_scale) * cos(image, text) at a timestep."""

    meanings = {"spm_score": "score of the preference model that training used, at timestep 0"}

    def __init__(self, model: PreferenceModel):
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


def load(source: str, context: Context) -> SPMReward:
    """Loads the preference model.

    Args:
      source: folder, file, hub id, one file of a hub repository, or ``toy``; if empty, the field ``model`` of
        ``context.options``.
      context: its options have the fields ``model`` and ``tokenizer``.

    Raises:
      UserError: the preference model cannot be read, or was trained on another kind of model.
    """
    options = context.options
    model = load_spm(
        source or options.get("model", toy.NAME),
        tokenizer=options.get("tokenizer") or None,
        dtype=context.dtype,
        mesh=context.mesh,
        judges=context.kind,
        abstract=context.abstract,
    )
    return SPMReward(model)
